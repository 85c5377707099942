"""Random checkpoints, codecs and releases in published layouts, for benchmarks, tests and scripts."""
