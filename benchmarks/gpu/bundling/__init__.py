"""What `benchmarks/gpu/bundling/__main__.py` does: choose wheels, trim them, cut them into parts, join them again."""
