"""Benchmarks: how long the harness and its alternatives take, side by side."""
