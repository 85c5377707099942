"""Measurements and their results. Run one as `python -m benchmarks.<name>` from the root of the repository."""

import lab  # noqa: F401  (registers the families that only tests and benchmarks use)
