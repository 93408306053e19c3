"""The embedded world of coloured shapes and its rules; numpy only."""
