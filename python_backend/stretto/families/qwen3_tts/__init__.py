"""Qwen3-TTS at 12.5 frames per second: Qwen3 over rows of text and frames, with a depth transformer."""
