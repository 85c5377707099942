"""Random checkpoints in the layouts in which models and codecs are published, for tests and benchmarks."""
