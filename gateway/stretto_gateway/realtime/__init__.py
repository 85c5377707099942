"""`WS /v1/realtime`: OpenAI's realtime API, conversations and transcripts while a user speaks."""
