"""Steps of `benchmarks/gpu/bundling/__main__.py`: select wheels, trim them, cut them into parts, join the parts."""
