"""This family's mechanism: sampling of codes, text that has rows without frames, and the frames that are decoded."""
