"""Command `stretto run`: install a model if it is not installed, and serve it or use it once.

    stretto run NAME                 server with web page and API, in the foreground
    stretto run NAME "Some text."    speaks once: plays at a terminal, writes WAV to a pipe
    program | stretto run NAME       speaks what arrives
    stretto run NAME FILE            transcribes a recording, or answers it, if the model listens

NAME is a name of stretto list --all, OWNER/NAME on the hub, OWNER/NAME#PART, or the path of a folder. Arguments after
`--` go to `stretto serve`.
"""

import argparse
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard

from stretto.config import DecoderConfig
from stretto.convert.profiles import BALANCED, CPU_FORMATS, GPU_FORMATS, add_profile
from stretto.engine.environment import HELD_MB
from stretto.errors import CheckpointError, CommandParser
from stretto.launcher import command as launcher
from stretto.launcher.background import BackgroundServer, CannotServe, require_installation
from stretto.launcher.config import default_port, whole_number
from stretto.launcher.installation import LaunchError, bundled_repository, state_folder
from stretto.machine.gpus import gpu_number
from stretto.releases.fit import has_vnni, held_mb
from stretto.releases.hub import Hub
from stretto.releases.install import (
    BUILD,
    Choices,
    Installer,
    choices_of,
    device_of,
    install_options,
    interrupted_by_sigterm,
    token_of,
)
from stretto.releases.jobs import JobProcess
from stretto.releases.messages import BadArgument, InstallationStage, ReleaseError, failed, line
from stretto.releases.store import InstalledModel, InstalledModels
from stretto.untrusted_files import json_object
from stretto_contract.listening import LOOPBACK, listening_address

RECORD = "served.json"  # in the model repository; written last
STAMP = "stamp"
PROFILE = "profile"


@dataclass(frozen=True)
class Devices:
    """Devices, weight format and profile of a server.

    Attributes:
        gpu: GPU of the model; None to serve on the CPU.
        codec_device: Another GPU for the codec; None for `gpu`.
        quantize: Weight format: int8 on the CPU, fp8 on a GPU; None for the stored one.
        convolutions: One of `DecoderConfig.CONVOLUTIONS`.
        mps: True if the launcher runs NVIDIA's MPS.
        serving: Serving profile (`convert.profiles`).
    """

    gpu: int | None = None
    codec_device: int | None = None
    quantize: str | None = None
    convolutions: str = "float32"
    mps: bool = False
    serving: str = BALANCED

    @property
    def folder_name(self) -> str:
        """Name of the model repository in the model's folder."""
        weights = f"-{self.quantize}" if self.quantize else ""
        weights += "" if self.serving == BALANCED else f"-{self.serving}"
        if self.gpu is None:
            return f"served-cpu{weights}"
        codec = "" if self.codec_device is None else f"-codec{self.codec_device}"
        convolutions = "" if self.convolutions == "float32" else f"-{self.convolutions}"
        return f"served-gpu{self.gpu}{codec}{weights}{convolutions}{'-mps' * self.mps}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the server's process, in which GPU 0 is `gpu`, and GPU 1 the codec's."""
        if self.gpu is None:
            return {}
        numbers = [self.gpu] if self.codec_device is None else [self.gpu, self.codec_device]
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, numbers))}

    @property
    def placement(self) -> dict[str, Any] | None:
        """Arguments of `Placement`; None for the CPU."""
        if self.gpu is None:
            return None
        return {
            "gpu": 0,
            "codec_device": None if self.codec_device is None else 1,
            "convolutions": self.convolutions,
            "shares_by_mps": self.mps,
        }


@dataclass(frozen=True)
class Served:
    """A model repository, and the profile of its model."""

    folder: Path
    profile: dict[str, Any]


def served(model: InstalledModel, devices: Devices, models: InstalledModels, builder: JobProcess) -> Served:
    """Return the model repository of a model; create it if it is missing or was made by another version.

    It is in the model's folder or, if that is read-only, in the user's cache. If the model cannot be served on these
    devices, raise ReleaseError.
    """
    if not model.manifest.serves:
        raise ReleaseError(f"{model.manifest.name} is converted, but no server for it exists")
    folder = model.folder / devices.folder_name
    repository = _read(folder)
    if repository is None and not os.access(model.folder, os.W_OK):
        models = InstalledModels(model.private_folder)
        folder = models.folder / devices.folder_name
        repository = _read(folder)
    if repository is not None:
        return repository
    with models.lock(model.folder.name):
        repository = _read(folder)  # made by another process in the meantime
        if repository is None:
            stage = InstallationStage("preparing", devices.folder_name)
            shutil.rmtree(folder, ignore_errors=True)
            manifest = model.manifest
            profile = builder.call(
                "repository",
                checkpoint=str(model.checkpoint),
                out=str(folder),
                model=[manifest.name, manifest.key, manifest.sources[0]["commit"] if manifest.sources else ""],
                placement=devices.placement,
                quantize=devices.quantize,
                gpu=devices.gpu,
                serving=devices.serving,
            )
            (folder / RECORD).write_text(json.dumps({STAMP: stamp(), PROFILE: profile}) + "\n")
            stage.end()
            repository = Served(folder, profile)
        return repository


def stamp() -> str:
    """Return a digest of what this version writes into a model repository; one with another digest is made again."""
    digest = hashlib.sha256(version("stretto").encode())
    root = bundled_repository()
    for path in sorted([*root.glob("*/config.pbtxt"), *root.glob("*/1/*.py")]):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _read(folder: Path) -> Served | None:
    """Return a model repository; None if there is none, or another version has made it."""
    try:
        record = json_object(folder / RECORD)
    except CheckpointError:
        return None
    profile = record.get(PROFILE)
    return Served(folder, profile) if _is_profile(profile) and record.get(STAMP) == stamp() else None


def _is_profile(profile: object) -> TypeGuard[dict[str, Any]]:
    """Return True if a JSON value has the fields of a model profile that `stretto run` reads."""
    if not (isinstance(profile, dict) and isinstance(profile.get("family"), str) and _are_words(profile.get("voices"))):
        return False
    tasks = profile.get("tasks")
    return isinstance(tasks, list) and all(
        isinstance(task, dict)
        and isinstance(task.get("name"), str)
        and isinstance(task.get("speaks"), bool)
        and _are_words(task.get("needs"))
        for task in tasks
    )


def _are_words(words: object) -> bool:
    return isinstance(words, list) and all(isinstance(word, str) for word in words)


STANDARD_INPUT = "-"
MAX_PORT = 65_532  # the next three ports are used, too
MAX_NAMED = 8  # voices in the output
CANNOT_SERVE = 3
ACTIONS = {"speak": "speaks", "transcribe": "transcribes", "talk": "answers speech"}


@dataclass(frozen=True)
class Speech:
    """The command-line client, which only the console command imports.

    Attributes:
        check: Checks parsed options, and exits if they are invalid.
        perform: Sends the request to the server whose address its second argument returns.
    """

    parents: Sequence[argparse.ArgumentParser]
    text: Callable[[str], str]
    check: Callable[[argparse.ArgumentParser, argparse.Namespace], None]
    perform: Callable[[argparse.Namespace, Callable[[], str]], int]


def main(words: list[str], speech: Speech) -> int:
    """Run `stretto run` and return its exit code."""
    own_words = words
    passed = []
    if "--" in words:
        at = words.index("--")
        own_words = words[:at]
        passed = words[at + 1 :]
    try:
        flags = parser_of(speech)
        args = flags.parse_intermixed_args(own_words)  # otherwise options could not be between name and text
        return _run(flags, args, passed, speech)
    except ReleaseError as error:
        return failed("run", error)
    except LaunchError as error:
        print(f"stretto run: {error}", file=sys.stderr)
        return CANNOT_SERVE if isinstance(error, CannotServe) else ReleaseError.status


def parser_of(speech: Speech) -> argparse.ArgumentParser:
    """Return the parser of the command line; raise LaunchError if STRETTO_PORT is not a valid port."""
    parser = CommandParser(
        prog="stretto run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[*speech.parents, install_options()],
        allow_abbrev=False,
    )
    parser.add_argument("release", help="name, OWNER/NAME, OWNER/NAME#PART, or path of a folder")
    about = "text to speak, or a recording; -: from standard input; default: serve"
    parser.add_argument("text", nargs="?", type=speech.text, help=about)
    parser.add_argument("--task", help="name of the model's task; default: its first one")
    group = parser.add_argument_group("server")
    group.add_argument("--serve", action="store_true", help="serve also if standard input is a pipe or a file")
    group.add_argument(
        "--port", type=first_port, default=default_port(), metavar="P", help="HTTP port; default: %(default)s"
    )
    group.add_argument(
        "--address", type=listening_address, default=LOOPBACK, help="0.0.0.0 or :: opens the ports to all hosts"
    )
    group.add_argument("--no-gateway", action="store_true", help="serve without web page and OpenAI's audio API")
    group.add_argument("--codec-device", type=gpu_number, metavar="N", help="codec on GPU N")
    about = "format of the weights: int8 on the CPU, fp8 on a GPU"
    group.add_argument("--quantize", choices=CPU_FORMATS + GPU_FORMATS, help=about)
    group.add_argument("--convolutions", choices=DecoderConfig.CONVOLUTIONS, help="convolutions of the codec on a GPU")
    group.add_argument("--mps", action="store_true", help="run NVIDIA's MPS daemon")
    add_profile(group)
    return parser


def first_port(text: str) -> int:
    """Parse a port that has three ports after it."""
    return whole_number(text, MAX_PORT, f"a port from 1 to {MAX_PORT}")


def _run(flags: argparse.ArgumentParser, args: argparse.Namespace, passed: list[str], speech: Speech) -> int:
    if args.text is None and not args.serve and reads_input():
        args.text = STANDARD_INPUT
    if args.serve and args.text is not None:
        raise BadArgument("--serve: expected no text")
    _choose_output(args)
    if args.cpu or args.gpu is not None:
        _check_options(args, args.gpu)  # before the download
    require_installation()
    models = InstalledModels()
    with interrupted_by_sigterm(), Hub(token_of(args)) as hub, JobProcess(BUILD) as builder:
        model = Installer(models, hub, builder, choices_of(args)).install_named(args.release)
        gpu = device_of(model, args.gpu, args.cpu)
        _check_options(args, gpu)
        if args.quantize in CPU_FORMATS and not has_vnni():
            line("warning", f"--quantize {args.quantize}: this processor has no VNNI; the weights stay as stored")
        convolutions = args.convolutions or "float32"
        devices = Devices(gpu, args.codec_device, args.quantize, convolutions, args.mps, args.profile)
        served_model = served(model, devices, models, builder)
    os.environ.update(devices.environment)
    server = BackgroundServer(
        args.port,
        state_folder(),
        repository=served_model.folder,
        has_gateway=not args.no_gateway,
        arguments=("--address", args.address, *passed),
    )
    if gpu is not None and server.record() is None:
        os.environ[HELD_MB] = str(held_mb(gpu))
    if args.text is None:
        return serve(server, served_model)
    _choose_command(args, served_model.profile, model.manifest.name)
    voices = served_model.profile["voices"]
    if args.voice is None and args.clone is None and model.manifest.default_voice in voices:
        args.voice = model.manifest.default_voice
    speech.check(flags, args)
    args.server = None

    def address() -> str:
        server.ensure_ready()
        return server.address

    return speech.perform(args, address)


def _check_options(args: argparse.Namespace, gpu: int | None) -> None:
    """Raise BadArgument for options that apply only to another device than the server's."""
    if gpu is None and (args.codec_device is not None or args.convolutions or args.mps):
        options = "--codec-device, --convolutions and --mps"
        raise BadArgument(f"{options}: expected a server on a GPU, got the CPU")
    formats = CPU_FORMATS if gpu is None else GPU_FORMATS
    if args.quantize and args.quantize not in formats:
        device = "the CPU" if gpu is None else "a GPU"
        raise BadArgument(f"--quantize: expected {' or '.join(formats)} on {device}, got {args.quantize}")


def serve_model(words: list[str]) -> int:
    """Run `stretto serve --model NAME` and return its exit code."""
    args, others = model_arguments(words)
    try:
        models = InstalledModels()
        choices = Choices(is_offline=True)
        with interrupted_by_sigterm(), Hub() as hub, JobProcess(BUILD) as builder:
            model = Installer(models, hub, builder, choices).install_named(args.model)
            devices = Devices(device_of(model, None, False), serving=args.profile)
            served_model = served(model, devices, models, builder)
        os.environ.update(devices.environment)
        if devices.gpu is not None:
            os.environ[HELD_MB] = str(held_mb(devices.gpu))
    except ReleaseError as error:
        return failed("serve", error)
    return launcher.main(["--model-repository", str(served_model.folder), *others])


def model_arguments(words: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse `--model NAME` and `--profile NAME`; return the other arguments, too."""
    parser = CommandParser(prog="stretto serve", add_help=False, allow_abbrev=False)
    parser.add_argument("--model", required=True)
    add_profile(parser)
    return parser.parse_known_args(words)


def serve(server: BackgroundServer, served_model: Served) -> int:
    """Run a server in the foreground until a signal stops it; return at once if it runs already."""
    server.check_model()
    voices = served_model.profile["voices"]
    if voices:
        others = f" and {len(voices) - MAX_NAMED} more" if len(voices) > MAX_NAMED else ""
        line("voices", ", ".join(voices[:MAX_NAMED]) + others)
    if server.has_gateway:
        address = f"http://127.0.0.1:{server.port + 3}"
        voice = f'"voice": "{voices[0]}", ' if voices else ""
        line("page", address)
        body = f"""'{{"model": "{served_model.profile["family"]}", {voice}"input": "Hello."}}'"""
        line("API", f"curl {address}/v1/audio/speech --json {body} -o hello.mp3")
    if server.is_running():
        line("running", f"on port {server.port}; stretto serve --stop stops it")
        return 0
    return launcher.main(server.launcher_arguments())


def reads_input() -> bool:
    """Return True if standard input is a pipe or a file, and not a terminal, a socket or /dev/null."""
    if sys.__stdin__ is None:
        return False
    mode = os.fstat(sys.__stdin__.fileno()).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _choose_output(args: argparse.Namespace) -> None:
    """Select WAV on standard output unless that is a terminal, or a file is named."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    if args.out == Path(STANDARD_INPUT) and is_terminal:
        raise BadArgument("--out -: expected a pipe or a file as standard output, got a terminal")
    if args.out is None and not is_terminal:
        args.out = Path(STANDARD_INPUT)


def _choose_command(args: argparse.Namespace, profile: Mapping[str, Any], name: str) -> None:
    """Set the client's command and its input for the chosen task, or for the model's first one."""
    tasks = [task for task in profile["tasks"] if args.task in (None, task["name"])]
    if not tasks:
        names = ", ".join(task["name"] for task in profile["tasks"])
        raise BadArgument(f"--task: expected one of {names}, got {args.task!r}")
    task = tasks[0]
    args.task = task["name"]
    if "text" in task["needs"] and task["speaks"]:
        args.command = "speak"
        return
    if "audio" not in task["needs"]:
        raise BadArgument(f"{name}: task {task['name']} answers text with text: use stretto chat")
    args.command = "talk" if task["speaks"] else "transcribe"
    args.file = Path(args.text)
    if args.text != STANDARD_INPUT and not os.path.exists(args.text):  # a Path raises OSError if it is too long
        raise BadArgument(f"{name} {ACTIONS[args.command]}: expected an audio file or -, got {args.text[:40]!r}")
