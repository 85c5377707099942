"""vLLM's own language models, reading and writing several streams per row. Weights only, no request state."""
