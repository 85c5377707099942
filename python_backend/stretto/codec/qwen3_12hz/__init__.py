"""The codec of Qwen3-TTS at 12.5 frames a second: its decoder, and what hears a voice to be cloned."""
