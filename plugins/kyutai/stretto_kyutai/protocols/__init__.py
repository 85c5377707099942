"""Kyutai's WebSocket protocols: full-duplex speech, live transcription, streamed synthesis."""
