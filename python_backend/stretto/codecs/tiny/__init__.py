"""Bundled codec: a residual quantiser of mel frames, and a source-filter vocoder."""
