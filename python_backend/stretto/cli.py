"""The `stretto` console command. Each subcommand imports its modules only when it runs.

Little is imported before the current folder is excluded, because Python may search it first.
"""

import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from stretto.releases.run import Speech

USAGE = """\
usage: stretto COMMAND ...    (stretto COMMAND --help lists its options)

  run NAME ["text"]         install a published model if needed, and serve it or speak once; OWNER/NAME; ./FOLDER
  pull NAME                 install a published model
  list                      list the installed models; --all: the names of all published ones; --json
  rm NAME                   remove an installed model
  speak "text"              text to speech: --voice NAME, --out FILE, --guidance SCALE, --words, ...
  transcribe FILE           speech to text, from a wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac file
  talk FILE                 speech in and out at once, for a file or, as -, for standard input
  chat                      conversation; each line of standard input is a turn
  capacity                  measure how many streams this machine speaks at once: --cost-per-hour PRICE, --json
  serve                     run the server; --model-repository FOLDER (default: the bundled model), or --model NAME for
                            an installed model
  serve --status | --stop   show the state of the server, or stop it
  ps                        list the running servers of this user: models, ports, memory, requests; --json
  gateway                   serve OpenAI's audio API over HTTP for a running server; serve --gateway starts both
  read FILE                 have a book read aloud by a gateway, as m4b with chapters, mp3 or wav: --out, --voice
  voices add | list | remove | export | import  manage the recorded voices that the gateway stores
  pronunciations import | export | remove  manage the pronunciation dictionary that the gateway stores for a key
  show [NAME | ./FOLDER]    published releases: names, licences, and the commands that install them; --json
  convert FAMILY            convert a published model to a checkpoint; convert aligner: a model for word times
  make-repository           create a model repository for a checkpoint
  families                  list the installed model families, codecs and markers
  verify FILE               look for marks of synthetic speech in audio files; --json. --text "text" also
                            generates the speech of its receipt again, and compares them; --receipt FILE
  signing-key FILE          make a key with which the gateway signs receipts of speech; prints the public key

speak, transcribe, talk, chat and capacity use the server at --server HOST:PORT, or by default the server of this
machine, which they start in the background if it is not running. STRETTO_PORT (default 8000) is its HTTP port; the
next three ports are gRPC, metrics and the gateway.
"""


def main(words: list[str] | None = None) -> int:
    """Run the subcommand in `words` (default: `sys.argv`) and return its exit code."""
    if words is None:
        words = sys.argv[1:]
        try:
            exclude_current_folder(os.getcwd())
        except FileNotFoundError:
            print("stretto: the current folder was removed: change to another one", file=sys.stderr)
            return 1
    drop_error_filters()
    if not words:
        print(USAGE, end="", file=sys.stderr)
        return 2
    name, *arguments = words
    if name in ("--help", "-h"):
        return show(USAGE)
    if name == "--version":
        from importlib.metadata import version

        return show(f"stretto {version('stretto')}\n")
    if name not in COMMANDS:
        noun = "flag" if name.startswith("-") else "command"
        print(f"stretto: unknown {noun} {name!r}; stretto --help lists all commands", file=sys.stderr)
        return 2
    command = partial(run, name, words if COMMANDS[name] is client else arguments)
    try:
        from stretto_client import console
    except ModuleNotFoundError:  # the client's dependencies are not installed
        return command()
    return console.run(command)


def exclude_current_folder(current: str) -> None:
    """Make this process, and all that it starts, import nothing from the current folder unless PYTHONPATH names it.

    Python searches this folder first with `-m` (without `-P`), and for an empty entry of PYTHONPATH.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # as Python's option -P does
    if not sys.flags.safe_path and sys.path[0] == current:
        del sys.path[0]
    variable = os.environ.get("PYTHONPATH")
    if not variable:
        return
    entries = variable.split(os.pathsep)
    named = [os.path.normpath(os.path.join(current, entry)) for entry in entries if entry]
    os.environ["PYTHONPATH"] = os.pathsep.join(named)
    if "" in entries and current not in named and current in sys.path:
        sys.path.remove(current)


def drop_error_filters() -> None:
    """Stop warnings from becoming errors, here and in child processes, because libraries that we import emit some."""
    wanted = os.environ.get("PYTHONWARNINGS", "").split(",")
    kept = [option for option in wanted if not is_error_filter(option)]
    if kept != wanted:
        os.environ["PYTHONWARNINGS"] = ",".join(kept)
        warnings.filters[:] = [entry for entry in warnings.filters if entry[0] != "error"]  # type: ignore[index]


def is_error_filter(text: str) -> bool:
    """Return True if a filter of PYTHONWARNINGS, whose action may be abbreviated, turns warnings into errors."""
    action = text.partition(":")[0].strip()
    return bool(action) and "error".startswith(action)


def run(name: str, words: list[str]) -> int:
    try:
        return COMMANDS[name](words)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("stretto"):
            raise
        extra = EXTRAS.get(name, "embedded")
        print(f"stretto {name}: {error}; install the extra {extra!r} of this package", file=sys.stderr)
        return 1


def show(text: str) -> int:
    """Print a text without importing the client, and return the exit code."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise the interpreter repeats the error
        if isinstance(error, BrokenPipeError):
            return 141
        print(f"error: standard output: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def client(words: list[str]) -> int:
    """Run `speak`, `transcribe`, `talk` or `chat`; start a background server if none is running."""
    from stretto_client.__main__ import main

    return with_server(partial(main, words, prog="stretto"))


def capacity(words: list[str]) -> int:
    """Measure how many streams a server generates in real time; start a background server if none is running."""
    from stretto.machine.gpus import gpus
    from stretto_client.capacity.command import main

    return with_server(partial(main, words, gpu_names=lambda: tuple(gpu.name for gpu in gpus())))


def with_server(command: Callable[..., int]) -> int:
    """Run a command with a function that returns this machine's server, and return its exit code."""
    from stretto.launcher.background import CannotServe, ready_server
    from stretto.launcher.installation import LaunchError

    try:
        return command(default_server=ready_server)
    except LaunchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3 if isinstance(error, CannotServe) else 1


def serve(words: list[str]) -> int:
    """Start, query or stop a server."""
    from stretto.launcher.command import main

    if any(word.partition("=")[0] == "--model" for word in words):
        from stretto.releases.run import serve_model

        return serve_model(words)
    return main(words)


def ps(words: list[str]) -> int:
    """List the running servers of this user."""
    from stretto.releases.show import list_servers as main

    return main(words)


def gateway(words: list[str]) -> int:
    """Run only the OpenAI-compatible gateway, for a server that is started separately."""
    from stretto_gateway.command import main

    return main(words)


def voices(words: list[str]) -> int:
    """Manage the recorded voices that a gateway stores."""
    from stretto_gateway.voice_command import main

    return main(words, gateway_folder())


def read(words: list[str]) -> int:
    """Have a book read aloud by a gateway, and save the file."""
    from stretto_gateway.jobs.command import main

    return main(words)


def pronunciations(words: list[str]) -> int:
    """Import, export or remove the pronunciation dictionaries that a gateway stores."""
    from stretto_gateway.pronunciation_command import main

    return main(words, gateway_folder())


def gateway_folder() -> "Path | None":
    """Return the folder in which `stretto serve --gateway` stores voices; None for a user without a home folder."""
    from stretto.launcher.installation import LaunchError, state_folder

    try:
        return state_folder() / "voices"
    except LaunchError:  # a user without a home folder must name the folder
        return None


def show_release(words: list[str]) -> int:
    """Show published releases and the commands that install them."""
    from stretto.releases.show import main

    return main(words)


def run_release(words: list[str]) -> int:
    """Install a model if it is not installed, and serve it or use it once."""
    from stretto.releases.run import main

    return main(words, speech_client())


def speech_client() -> "Speech":
    from stretto.releases.run import Speech
    from stretto_client import arguments
    from stretto_client.__main__ import perform
    from stretto_client.console import argument_text

    options = (
        arguments.request_options(),
        arguments.sound_options(),
        arguments.speech_options(),
        arguments.recording_options(),
        arguments.role_options(),
    )
    return Speech(options, argument_text, arguments.check, perform)


def pull(words: list[str]) -> int:
    """Download, check and convert a published model."""
    from stretto.releases.install import pull as main

    return main(words)


def list_models(words: list[str]) -> int:
    """List the installed models, or the names of all published ones."""
    from stretto.releases.show import list_models

    return list_models(words)


def remove_models(words: list[str]) -> int:
    """Remove an installed model."""
    from stretto.releases.show import remove_models

    return remove_models(words)


def convert(words: list[str]) -> int:
    """Convert a published model to a checkpoint that the server can load."""
    from stretto.convert.command import main

    return main(words)


def make_repository(words: list[str]) -> int:
    """Create a Triton model repository for a checkpoint."""
    from stretto.convert.make_repository import main

    return main(words)


def families(words: list[str]) -> int:
    """List the installed model families, codecs and markers."""
    from stretto.entry_points import main

    return main(words)


def verify(words: list[str]) -> int:
    """Look for marks of synthetic speech in audio files, or compare one with its receipt."""
    if any(word.partition("=")[0] in OF_A_RECEIPT for word in words):
        return verify_receipt(words)
    from stretto.verification.command import main

    if find_spec("c2pa") is None:  # it reads manifests
        return main(words)
    from stretto_client.receipt_command import manifest_record

    return main(words, manifest_record)


def verify_receipt(words: list[str]) -> int:
    """Compare an audio file with its receipt; start a background server if none is running and one is needed."""
    from stretto.verification.command import compared_samples
    from stretto_client.receipt_command import verify as main
    from stretto_gateway.encoding import stretched

    return with_server(partial(main, words, compared=compared_samples, stretch=stretched))


def signing_key(words: list[str]) -> int:
    """Make a key that signs receipts."""
    from stretto_client.receipt_command import signing_key as main

    return main(words)


OF_A_RECEIPT = ("--receipt", "--text", "--key")  # options of `verify` with a receipt
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "run": run_release,
    "pull": pull,
    "list": list_models,
    "rm": remove_models,
    "speak": client,
    "transcribe": client,
    "talk": client,
    "chat": client,
    "capacity": capacity,
    "serve": serve,
    "ps": ps,
    "gateway": gateway,
    "read": read,
    "voices": voices,
    "pronunciations": pronunciations,
    "show": show_release,
    "convert": convert,
    "make-repository": make_repository,
    "families": families,
    "verify": verify,
    "signing-key": signing_key,
}
EXTRAS = dict.fromkeys(("run", "speak", "transcribe", "talk", "chat", "capacity"), "client") | {
    "gateway": "gateway",
    "read": "gateway",
    "voices": "gateway",
    "pronunciations": "gateway",
    "signing-key": "gateway",
}
