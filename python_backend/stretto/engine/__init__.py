"""The language model: a plugin on stock vLLM 0.32. The only package that imports vllm."""
