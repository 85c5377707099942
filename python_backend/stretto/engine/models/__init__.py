"""vLLM's language models extended by several streams per row. They hold weights, no request state."""
