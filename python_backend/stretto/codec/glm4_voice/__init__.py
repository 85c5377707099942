"""The decoder of GLM-4-Voice: speech tokens, a block conformer, flow matching to a mel spectrogram, HiFT to samples."""
