"""Qwen3-Omni and its talker."""
