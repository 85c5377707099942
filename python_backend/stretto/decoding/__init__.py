"""Decoding of windows on a device: modes of convolutions, and CUDA graphs. The decoder and the engine use it."""
