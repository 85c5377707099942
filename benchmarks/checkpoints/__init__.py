"""Random checkpoints, codecs and releases; also registers the families that only tests and benchmarks have."""

import sys
from pathlib import Path

# Entry points of these families, as of an installed package.
sys.path.append(str(Path(__file__).with_name("registered")))
