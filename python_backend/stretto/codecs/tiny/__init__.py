"""Bundled codec: a residual quantiser for mel frames, and a source-filter vocoder."""
