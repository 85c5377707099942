"""Qwen3-TTS at 12.5 frames a second: Qwen3 over rows of text and of frames, and a depth transformer."""
