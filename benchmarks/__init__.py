"""The code of every measurement, beside its results. Run as `python -m benchmarks.<name>` from the root."""
