"""ElevenLabs' text-to-speech API: HTTP, and WebSockets for text that is still being written."""
