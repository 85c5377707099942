"""This family's mechanism: sampling of codes, rows with text instead of frames, and shortened pauses."""
