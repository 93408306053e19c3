"""What the jobs read: scenes, prompt lists and tokens; numpy only."""
