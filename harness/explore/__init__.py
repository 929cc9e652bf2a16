"""Programs: sequences of steps as data, which are run, replayed, explored, minimised and bisected."""
