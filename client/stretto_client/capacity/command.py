"""Command `stretto capacity`: measures how many streams a server speaks at once without gaps."""

import argparse
import asyncio
import json
import math
import sys
from collections.abc import Callable
from contextvars import ContextVar
from importlib.metadata import version
from itertools import count
from typing import Any, cast

from stretto_client.arguments import Parser, json_object
from stretto_client.capacity.client_lag import lag
from stretto_client.capacity.host import Host, host
from stretto_client.capacity.levels import Level, LevelRun, Target, percentile
from stretto_client.capacity.report import Report, progress_line
from stretto_client.capacity.search import find_capacity
from stretto_client.capacity.sentences import SENTENCES, lines_of, mixed
from stretto_client.capacity.traces import Trace, follow
from stretto_client.client import SpeechClient, is_loopback
from stretto_client.console import argument_path, argument_text
from stretto_client.errors import RequestRefused, exit_status
from stretto_client.speech_stream import given

LEAST_SECONDS = 10.0
TASK = "tts"
STREAM: ContextVar[int] = ContextVar("stream", default=0)  # number of the current task's stream


def main(words: list[str], default_server: Callable[[], str], gpu_names: Callable[[], tuple[str, ...]]) -> int:
    """Measure a server, print the result, and return the exit status."""
    args = parse(words)

    def command() -> int:
        texts = SENTENCES if args.texts is None else lines_of(args.texts)
        args.server = args.server or default_server()
        is_here = is_loopback(args.server.rpartition(":")[0].strip("[]"))
        machine = host(gpu_names()) if is_here else None
        if machine is not None and machine.is_busy:
            print(f"the machine is busy: {machine.busy_cores:.1f} of {machine.cores} cores", file=sys.stderr)
        report = asyncio.run(measure(args, texts, machine))
        print(json.dumps(report.record()) if args.json else "\n".join(report.lines()))
        return 0

    return exit_status(command)


def parse(words: list[str]) -> argparse.Namespace:
    """Return the arguments; exit with status 2 if they are invalid."""
    about = "Measure how many streams a server speaks at once: p95 of the first audio below a limit, and no gaps."
    parser = Parser(prog="stretto capacity", description=about)
    add = parser.add_argument
    add("--server", metavar="HOST:PORT", help="its gRPC port; default: this machine's server")
    about = "latest first audio of 95 %% of the replies; default: %(default)s"
    add("--first-audio", type=above_zero, default=0.5, metavar="S", help=about)
    add("--seconds", type=duration, default=120.0, metavar="S", help="for all; default: %(default)g")
    add("--cost-per-hour", type=above_zero, metavar="PRICE", help="of the machine, for the cost of 1,000 characters")
    add("--texts", type=argument_path, metavar="FILE", help="texts to speak, one in a line; {} becomes a number")
    add("--voice", type=argument_text, help="a voice of the model")
    add("--guidance", type=float, dest="guidance_scale", metavar="SCALE", help="1 is unguided; default: the model's")
    add("--options", type=json_object, default={}, metavar="JSON", help="any option of the server")
    add("--json", action="store_true", help="print the result as JSON")
    return parser.parse_args(words)


def above_zero(word: str) -> float:
    """Parse a number above 0, for argparse."""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {word!r}")
    return number


def duration(word: str) -> float:
    """Parse the duration of a measurement in seconds, for argparse."""
    seconds = above_zero(word)
    if seconds < LEAST_SECONDS:
        raise argparse.ArgumentTypeError(f"expected at least {LEAST_SECONDS:g} s, got {word!r}")
    return seconds


async def measure(args: argparse.Namespace, texts: tuple[str, ...] | list[str], machine: Host | None) -> Report:
    """Measure the server, and print a line for each level to standard error."""
    # A server on this machine divides its limits among callers, so each stream is one.
    async with SpeechClient(args.server, caller=lambda: f"capacity-{STREAM.get()}") as client, lag() as late_s:
        profile = await client.profile()
        if not any(task.name == TASK and task.speaks for task in profile.tasks):
            raise RequestRefused(f"the model {profile.family} has no task {TASK}, which this command measures")
        language = profile.languages[0] if profile.requires_language else None
        flags = {"language": language, "voice": args.voice, "guidance_scale": args.guidance_scale}
        options = cast(Any, given(flags) | args.options)
        seeds = count(1)

        async def speak(trace: Trace, text: str, stream: int) -> Trace:
            STREAM.set(stream)
            request = {"seed": next(seeds)} | options
            return await follow(trace, client.speak(text, check="off", attempts=1, **request))

        lines = mixed(texts)
        first = await speak(Trace(sent=0.0), next(lines), 0)  # also warms the server up
        if first.error is not None and not first.is_refused:
            raise RequestRefused(f"the first request failed: {first.error}")

        async def measure_level(streams: int, target: Target, seconds: float) -> Level:
            return await LevelRun(speak, lines, streams, target).run(seconds)

        capacity = await find_capacity(measure_level, args.first_audio, args.seconds, print_progress)
        name = await model_name(client)
    lengths = f"{min(map(len, texts))} to {max(map(len, texts))} characters"
    load = f"texts of {lengths}; a stream requests the next one when its last has arrived"
    return Report(capacity, version("stretto"), name, machine, load, lag_of(late_s), args.cost_per_hour)


def print_progress(level: Level) -> None:
    print(progress_line(level), file=sys.stderr, flush=True)


def lag_of(late_s: list[float]) -> float:
    return percentile(late_s, 95) if late_s else 0.0


async def model_name(client: SpeechClient) -> str:
    """Return the model's name, with the revision of its release if it has one."""
    name = await client.server_name()
    try:
        record = json.loads(name)
        return " ".join(str(record[key]) for key in ("model", "revision", "configuration") if record.get(key))
    except (ValueError, AttributeError):  # another server
        return name
