"""Bundled codec: residual codes of a mel spectrogram, and a source-filter vocoder."""
