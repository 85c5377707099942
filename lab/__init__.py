"""Random releases, and the scripts that run authors' code: references of tests and benchmarks, never of the product.

Importing this package registers the families that only tests and benchmarks use.
"""

import sys
from pathlib import Path

# Entry points of these families, declared as an installed package declares them.
sys.path.append(str(Path(__file__).parent / "releases" / "registered"))
