"""Codec of Qwen3-TTS at 12.5 frames per second: decoder, encoder, and speaker encoder for voice cloning."""
