"""Acoustic decoder: codes in chunks to waveform in chunks."""
