"""The Qwen3-TTS codec (12.5 frames per second)."""
