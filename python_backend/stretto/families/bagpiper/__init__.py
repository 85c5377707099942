"""Bagpiper: Qwen3 8B that hears through Qwen3-Omni's encoder and speaks X-codec."""
