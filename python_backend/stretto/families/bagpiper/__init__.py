"""Bagpiper: Qwen3-8B with Qwen3-Omni's audio encoder and X-codec as its output codec."""
