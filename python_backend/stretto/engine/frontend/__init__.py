"""Front end of the engine, in the caller's process: `SpeechLLM`."""
