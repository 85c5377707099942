"""OpusLM and OpusLM dialogue."""
