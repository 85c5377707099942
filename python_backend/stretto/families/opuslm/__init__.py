"""OpusLM, and OpusLM dialogue."""
