"""Random checkpoints, codecs and releases; also registers the families that only tests and benchmarks use."""

import sys
from pathlib import Path

# Entry points of these families, in the form of an installed package.
sys.path.append(str(Path(__file__).with_name("registered")))
