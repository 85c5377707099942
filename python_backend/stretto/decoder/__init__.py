"""Codes in chunks to waveform in chunks."""
