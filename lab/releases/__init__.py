"""Randomly initialised checkpoints and codecs in published layouts, for benchmarks, tests and scripts."""
