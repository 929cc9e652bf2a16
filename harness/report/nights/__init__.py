"""The history of runs: one SQLite file that runs write and that reports over many nights read."""
