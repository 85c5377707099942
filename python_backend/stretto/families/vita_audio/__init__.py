"""VITA-Audio: interleaved text and speech in one stream, with several ids per forward pass."""
