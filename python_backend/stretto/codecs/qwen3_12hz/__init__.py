"""Codec of Qwen3-TTS with 12.5 frames per second, and the decoder of Qwen3-Omni with the same layers."""
