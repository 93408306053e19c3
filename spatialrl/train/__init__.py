"""One short loop per job, and the state they share."""
