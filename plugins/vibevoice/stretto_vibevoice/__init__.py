"""VibeVoice, VibeVoice-ASR and VibeVoice Realtime."""
