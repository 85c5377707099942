"""VibeVoice and VibeVoice Realtime."""
