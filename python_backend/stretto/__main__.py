"""Entry point of `python -m stretto`, which runs the console command `stretto`."""

import sys

from stretto.cli import main

if __name__ == "__main__":
    sys.exit(main())
