"""What the commands share: how wrong usage is reported."""

import argparse
from typing import NoReturn


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors are one line that names what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; {self.prog} --help says what there is\n")
