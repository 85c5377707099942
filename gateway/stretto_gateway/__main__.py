"""Entry point of `python -m stretto_gateway`, which runs the console command `stretto gateway`."""

import sys

from stretto_client.console import run
from stretto_gateway.command import main

if __name__ == "__main__":
    sys.exit(run(main))
