"""Bundled codec: a residual quantiser, an encoder, and a decoder of spectra."""
