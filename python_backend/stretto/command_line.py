"""Error reporting shared by the commands."""

import argparse
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """Argument parser with one-line error messages."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")
