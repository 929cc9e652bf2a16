"""The page for a browser: a history, or one run, as one HTML file."""
