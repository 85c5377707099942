"""Layers shared by the decoders derived from CosyVoice: conformer, flow matching, HiFT (arXiv 2412.10117)."""
