"""Kyutai's protocols over WebSockets: full-duplex speech, live transcription and streamed text to speech."""
