"""9P messages, and a raw client that sends them over qtest."""
