"""Qwen3-Omni and its talker, which speaks the text of replies."""
