"""`WS /v1/realtime`: OpenAI's realtime API for conversations and live transcription."""
