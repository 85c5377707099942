"""Measurements and their results. Run one as `python -m benchmarks.<name>` from the root of the repository.

Importing this package registers the families that only tests and benchmarks use.
"""

import sys
from pathlib import Path

# Entry points of these families, declared as an installed package declares them.
sys.path.append(str(Path(__file__).parent / "checkpoints" / "registered"))
