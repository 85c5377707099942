"""Sampling of one token id per row and stream, in numpy or torch on the host."""
