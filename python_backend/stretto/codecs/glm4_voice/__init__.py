"""Decoder of GLM-4-Voice: speech tokens, block conformer, flow matching to a mel spectrogram, HiFT."""
