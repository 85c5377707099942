"""Kyutai's STT and TTS, Moshi and PersonaPlex, and the gateway's route for Kyutai's protocols."""
