"""vLLM's language models with several streams per row. Weights only, no request state."""
