"""vLLM's language models extended by several streams per row. They hold weights but no request state."""
