"""Kyutai's STT and TTS, Moshi and PersonaPlex."""
