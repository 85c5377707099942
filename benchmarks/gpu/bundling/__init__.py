"""Steps that `benchmarks/gpu/bundling/__main__.py` runs: select, trim and split wheels, and join the parts."""
