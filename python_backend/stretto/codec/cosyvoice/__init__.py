"""What decoders that descend from CosyVoice's have in common: conformer, flow matching, HiFT; arXiv 2412.10117."""
