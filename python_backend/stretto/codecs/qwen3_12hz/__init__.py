"""The Qwen3-TTS codec (12.5 frames per second), and the Qwen3-Omni decoder, which has the same layers."""
