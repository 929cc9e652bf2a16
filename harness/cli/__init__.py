"""The command harness: one module for each of its commands."""
