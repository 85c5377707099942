"""Records exchanged between processes and Triton models."""
