"""MOSS-TTS, MOSS-TTS-Local and MOSS-TTS-Realtime."""
