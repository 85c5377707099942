"""vLLM's language models, extended to several streams per row. They contain weights but no request state."""
