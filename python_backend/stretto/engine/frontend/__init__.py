"""The process that callers are in: one door, `SpeechLLM`."""
