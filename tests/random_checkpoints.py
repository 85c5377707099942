"""Random checkpoints for tests: those that the benchmarks write."""

from benchmarks.checkpoints.random_checkpoint import write_checkpoint

__all__ = ["write_checkpoint"]
