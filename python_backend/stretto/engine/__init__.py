"""Language model: a plugin for stock vLLM 0.32."""
