"""Row layout and chunk sizes of generated audio, in NumPy and plain Python, independent of the model and server."""
