"""VITA-Audio: text and speech in one interleaved stream, several ids of which may come of one forward pass."""
