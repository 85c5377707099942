"""Command `stretto read`, which has a book read aloud by a gateway, and saves the file.

The job continues in the gateway if this command is interrupted, and `--job ID` waits for it again.
"""

import argparse
import asyncio
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aiohttp import ClientConnectionError, ClientError, ClientSession, ClientTimeout

from stretto_client.arguments import Parser
from stretto_client.console import TextDecoder, argument_path, argument_text
from stretto_gateway.command import port_in_row
from stretto_gateway.config import Limits
from stretto_gateway.jobs.audio import FORMATS
from stretto_gateway.jobs.store import ID
from stretto_gateway.voice_command import MAX_KEY_FILE_BYTES, read_file

PROG = "stretto read"
POLL_S = 1.0
READ_BYTES = 1 << 20  # of the finished file, at once


class Refused(Exception):
    """Raised if the gateway refuses a request, or if the job has failed."""


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Return the options; exit with status 2 if they are invalid."""
    parser = Parser(prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    about = f"text, plain or Markdown, of at most {Limits().max_book_bytes} bytes; - reads standard input"
    parser.add_argument("book", nargs="?", type=argument_path, metavar="FILE", help=about)
    about = f"file to write, whose name ends with {', '.join(f'.{name}' for name in FORMATS)}; default: FILE.m4b here"
    parser.add_argument("--out", type=argument_path, metavar="FILE", help=about)
    parser.add_argument("--job", metavar="ID", help="wait for a job that has begun, instead of FILE")
    parser.add_argument("--voice", type=argument_text, help="name or id of a voice; default: the model's")
    parser.add_argument("--title", type=argument_text, help="title in the file; default: the name of FILE")
    parser.add_argument("--seed", type=int, help="the same seed gives the same speech; default: random, and reported")
    default = f"http://localhost:{port_in_row(3)}"
    parser.add_argument("--gateway", metavar="URL", default=default, help="default: %(default)s")
    parser.add_argument("--key-file", type=argument_path, metavar="FILE", help="file with the API key; default: none")
    args = parser.parse_args(words)
    if (args.book is None) == (args.job is None):
        parser.error("expected either FILE or --job ID")
    if args.job is not None and not ID.fullmatch(args.job):
        parser.error(f"--job: expected the id of a job, got {args.job[:60]!r}")
    if args.out is None and (args.job is not None or str(args.book) == "-"):
        parser.error("--out: expected a file, because there is no FILE with a name")
    args.out = args.out or Path(args.book.name).with_suffix(".m4b")
    if args.out.suffix.removeprefix(".") not in FORMATS:
        parser.error(f"--out: expected a name that ends with .m4b, .mp3 or .wav, got {str(args.out)!r}")
    return args


def main(words: list[str] | None = None) -> int:
    """Run the command, and return the exit status.

    It is 0 for success, 1 if the connection or a file fails, 2 for a refused request or a failed job, and 3 without a
    gateway.
    """
    args = arguments(words)
    try:
        asyncio.run(read(args))
    except ClientConnectionError as error:
        return failed(f"no gateway at {args.gateway} ({error}); start one with stretto serve --gateway", 3)
    except (Refused, ValueError) as error:
        return failed(str(error), 2)
    except (ClientError, TimeoutError) as error:
        return failed(f"{args.gateway}: {error or 'no answer'}")
    except BrokenPipeError:
        raise
    except OSError as error:
        return failed(f"{error.filename or args.out}: {error.strerror}")
    return 0


def failed(message: str, status: int = 1) -> int:
    """Print an error and return the exit status."""
    print(f"{PROG}: {message}", file=sys.stderr)
    return status


async def read(args: argparse.Namespace) -> None:
    """Create the job unless there is one, wait for its end, and save its file."""
    headers = {}
    if args.key_file is not None:
        key = read_file(args.key_file, "--key-file", MAX_KEY_FILE_BYTES).decode(errors="replace").strip()
        headers = {"authorization": f"Bearer {key}"}
    timeout = ClientTimeout(total=None, connect=10, sock_read=60)
    async with ClientSession(args.gateway, headers=headers, timeout=timeout) as session:
        job_id = args.job or await create(session, args)
        print(f"{job_id}: goes on if this command ends; --job {job_id} waits for it", file=sys.stderr)
        record = await ended(session, job_id)
        if record["response_format"] != args.out.suffix.removeprefix("."):
            raise Refused(f"--out: expected a name that ends with .{record['response_format']}, got {str(args.out)!r}")
        await save(session, job_id, args.out)
    chapters = len(record["chapters"])
    seconds = record["chapters"][-1]["end_s"]
    print(f"{args.out}: {clock(seconds)}, {chapters} chapters, seed {record['seed']}", file=sys.stderr)


async def create(session: ClientSession, args: argparse.Namespace) -> str:
    """Create the job and return its id."""
    text = TextDecoder("FILE").decode(read_file(args.book, "FILE", Limits().max_book_bytes), is_last=True)
    title = args.title or (None if str(args.book) == "-" else args.book.stem)
    fields: dict[str, Any] = {"input": text, "response_format": args.out.suffix.removeprefix("."), "title": title}
    fields |= {"voice": args.voice, "seed": args.seed}
    body = {name: value for name, value in fields.items() if value is not None}
    async with session.post("/v1/audio/jobs", json=body) as answer:
        return str((await checked(answer))["id"])


async def checked(answer: Any) -> dict[str, Any]:
    """Return the JSON of an answer; raise Refused with its message if it is an error."""
    record = await answer.json(content_type=None)
    if answer.status != 200 or not isinstance(record, dict):
        error = record.get("error", {}) if isinstance(record, dict) else {}
        raise Refused(error.get("message") or f"status {answer.status}")
    return record


async def ended(session: ClientSession, job_id: str) -> Mapping[str, Any]:
    """Wait until a job ends, show its progress, and return its record; raise Refused unless it is complete."""
    begun_s = time.monotonic()
    first: int | None = None
    while True:
        async with session.get(f"/v1/audio/jobs/{job_id}") as answer:
            record = await checked(answer)
        counts = record["request_counts"]
        first = counts["completed"] if first is None else first
        show(progress(counts["completed"], counts["total"], counts["completed"] - first, time.monotonic() - begun_s))
        if record["ended_at"] is not None:
            break
        await asyncio.sleep(POLL_S)
    show("\n")
    if record["status"] != "completed":
        reasons = "; ".join(error["message"] for error in record["errors"])
        raise Refused(f"{job_id}: {record['status']}{reasons and ': '}{reasons}")
    return record


def progress(num_spoken: int, total: int, num_new: int, seconds: float) -> str:
    """Return a line with a progress bar, the number of sections, and the remaining time.

    `num_new` is the number of sections that were spoken in these `seconds`.
    """
    width = max(10, min(40, shutil.get_terminal_size().columns - 40))
    done = width * num_spoken // total
    left = f", {clock(seconds * (total - num_spoken) / num_new)} left" if num_new else ""
    return f"\r[{'#' * done}{'.' * (width - done)}] {num_spoken} of {total} sections{left}   "


def show(text: str) -> None:
    """Print progress to a terminal."""
    if sys.stderr.isatty():
        print(text, end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return a duration as `h:mm:ss`."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


async def save(session: ClientSession, job_id: str, out: Path) -> None:
    """Download the finished file of a job; `out` exists only once it is complete."""
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        async with session.get(f"/v1/audio/jobs/{job_id}/content") as answer:
            if answer.status != 200:
                await checked(answer)
            with unfinished.open("wb") as file:
                async for data in answer.content.iter_chunked(READ_BYTES):
                    file.write(data)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
