"""Command-line options of installations, and an interrupt on SIGTERM."""

import argparse
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from stretto.errors import CommandParser, argument_path
from stretto.machine.gpus import gpu_number
from stretto.releases.hub import is_offline, read_token
from stretto.releases.install import Choices

DTYPES = ("float32", "bfloat16", "float16")


def install_options() -> argparse.ArgumentParser:
    """Return a parent parser with the options of an installation."""
    parser = CommandParser(add_help=False)
    group = parser.add_argument_group("installation")
    add = group.add_argument
    add("--revision", metavar="R", help="commit, branch or tag; default: the tested one, or the newest")
    add("--offline", action="store_true", help="ask the hub nothing; as HF_HUB_OFFLINE=1")
    add("--accept-license", action="store_true", help="accept the licences of the release and what it needs")
    add(
        "--token-file",
        type=argument_path,
        metavar="FILE",
        help="file with an access token; default: HF_TOKEN or hf auth login",
    )
    add("--family", metavar="NAME", help="family of the release, if several fit")
    add("--dtype", choices=DTYPES, help="dtype of the weights; default: as published, but no float32 on a GPU")
    about = "argument of stretto convert FAMILY, such as codec=FOLDER; repeatable"
    add(
        "--with",
        dest="converter",
        type=converter_argument,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=about,
    )
    add("--no-hearing", action="store_true", help="omit the networks that encode voice recordings")
    add("--or-smaller", action="store_true", help="take a smaller release of the same kind if this one does not fit")
    add("--force", action="store_true", help="install again, also what does not fit")
    devices = group.add_mutually_exclusive_group()
    devices.add_argument(
        "--gpu", type=gpu_number, metavar="N", help="GPU to serve on; default: one that fits, or the CPU"
    )
    devices.add_argument("--cpu", action="store_true", help="serve on the CPU")
    return parser


def converter_argument(text: str) -> tuple[str, str]:
    """Parse KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or not key.replace("-", "").isalnum():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return f"--{key}", value


def choices_of(flags: argparse.Namespace) -> Choices:
    """Return the choices in parsed options."""
    words = [word for pair in flags.converter for word in pair]
    words += ["--dtype", flags.dtype] if flags.dtype else []
    words += ["--no-hearing"] if flags.no_hearing else []
    return Choices(
        revision=flags.revision,
        family=flags.family,
        arguments=tuple(words),
        is_offline=flags.offline or is_offline(),
        accepts_licence=flags.accept_license,
        takes_smaller=flags.or_smaller,
        is_forced=flags.force,
        gpu=flags.gpu,
        is_for_cpu=flags.cpu,
    )


def token_of(flags: argparse.Namespace) -> str | None:
    """Return the token in the file that the user names; None for that of the environment."""
    return None if flags.token_file is None else read_token(flags.token_file)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM like an interrupt, so that child processes are ended and unfinished folders removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
