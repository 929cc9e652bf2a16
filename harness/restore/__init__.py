"""Templates: guests that were booted once, saved, and are restored for each test."""
