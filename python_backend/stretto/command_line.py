"""Argument parser shared by all commands."""

import argparse
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line, with a reference to --help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")
