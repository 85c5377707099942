"""Command line `stretto` or `python -m stretto_client`: speak, transcribe, talk and chat.

The exit status is 0 for success, 1 if the server failed, 2 for a rejected request or invalid arguments, 3 if there is
no server, 4 after a timeout, and 130 after an interrupt.

`stretto chat` holds a conversation in which each line of standard input is a user turn.
"""

import argparse
import asyncio
import codecs
import json
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from stretto_client.client import SpeechClient
from stretto_client.errors import ClientError, RequestRefused, Timeouts
from stretto_client.long_speech import Speech
from stretto_client.markup import MARKUPS
from stretto_client.sinks import AudioFile, Sink, Tally, find_player, follow
from stretto_client.speech_stream import Conversation, RecordedVoice, SpeechEvent, given, system_turn

MAX_READ_BYTES = 65_536


def standard_input() -> str | AsyncIterator[str]:
    """Return the complete text if standard input is a file, or an iterator over the text from a pipe.

    Raises:
        UnicodeDecodeError: The text is not UTF-8.
    """
    descriptor = sys.stdin.fileno()
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return sys.stdin.read()
    return pieces_from(descriptor)


async def pieces_from(descriptor: int) -> AsyncIterator[str]:
    """Yield text, in whole characters, as it arrives at a file descriptor."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    async for data in bytes_from(descriptor):
        if text := decoder.decode(data):
            yield text
    decoder.decode(b"", final=True)


async def samples_from(descriptor: int) -> AsyncIterator[NDArray[Any]]:
    """Yield samples, int16 [n], as they arrive at a file descriptor as 16-bit little-endian bytes."""
    left = b""
    async for data in bytes_from(descriptor):
        data = left + data
        even = len(data) // 2 * 2
        left = data[even:]
        yield np.frombuffer(data[:even], "<i2")


async def bytes_from(descriptor: int) -> AsyncIterator[bytes]:
    """Yield bytes as they arrive at a file descriptor, which a daemon thread reads."""
    loop, came = asyncio.get_running_loop(), asyncio.Queue[bytes | OSError]()
    wanted = threading.Semaphore(1)

    def read() -> None:
        while wanted.acquire():
            data: bytes | OSError
            try:
                data = os.read(descriptor, MAX_READ_BYTES)
            except OSError as error:
                data = error
            try:
                loop.call_soon_threadsafe(came.put_nowait, data)
            except RuntimeError:  # the event loop is closed
                return
            if not data or isinstance(data, OSError):
                return

    threading.Thread(target=read, name="standard input", daemon=True).start()
    while True:
        data = await came.get()
        if isinstance(data, OSError):
            raise data
        if not data:
            return
        yield data
        wanted.release()


# beginning of the server's error for `output` with a task that replies in text
NEVER_SPEAKS = "options.output: expected no value"


def chat(args: argparse.Namespace) -> int:
    """Send each input turn and print its reply; return 2 if any turn was rejected, otherwise 0.

    A rejected turn does not become part of the conversation. On a terminal, Ctrl-C during a reply cancels only that
    reply; otherwise it ends the chat.
    """
    status = 0
    if args.out_dir is not None:
        args.out_dir.mkdir(parents=True, exist_ok=True)
    with asyncio.Runner() as runner:  # each turn runs the event loop; input is read between turns
        talk = runner.run(_begin(args))
        try:
            for line in _lines():
                try:
                    runner.run(talk.turn(*_read_turn(line)))
                except (RequestRefused, ValueError, OSError) as error:
                    print(f"error: {error}", file=sys.stderr)
                    status = 2
                except KeyboardInterrupt:
                    if not sys.stdin.isatty():
                        raise
                    print("interrupted", file=sys.stderr)
        finally:
            runner.run(talk.client.close())
    return status


async def _begin(args: argparse.Namespace) -> "Talk":
    return Talk(SpeechClient(args.server, Timeouts(total_s=args.timeout)), args)


def _lines() -> Iterator[str]:
    """Yield the non-empty input lines; show a prompt on a terminal."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line:
            yield line


def _read_turn(line: str) -> tuple[str | None, Path | None]:
    """Return the text and the file in a line of the form `text`, `@file` or `@file text`."""
    if not line.startswith("@"):
        return line, None
    if Path(line[1:]).is_file():
        return None, Path(line[1:])
    name, _, text = line[1:].partition(" ")
    return text.strip() or None, Path(name)


class Talk:
    """Conversation with the server, printed as it proceeds."""

    def __init__(self, client: SpeechClient, args: argparse.Namespace):
        self.client, self._args = client, args
        self._conversation = Conversation(args.system, args.clone)
        flags = {"task": args.task, "seed": args.seed}
        # The codes of a reply are sent back with later turns, so that the model's voice stays the same.
        output = {"output": {"codes": True} | args.options.get("output", {})}
        self._options: dict[str, Any] = args.options | output | given(flags)
        self._num_replies = 0

    async def turn(self, text: str | None, file: Path | None) -> None:
        """Send a turn and print the reply; if there is no reply, remove the turn from the conversation."""
        self._conversation.add_user(text, file)
        reply = None
        try:
            reply = await self._ask()
        finally:
            if reply is None:
                self._conversation.remove_last()
        self._conversation.add_reply(reply.tally.text, reply.codes)
        print(json.dumps(reply.record()) if self._args.json else "", flush=True)
        print(reply.summary(), file=sys.stderr)

    async def _ask(self) -> "Reply":
        try:
            return await self._receive()
        except RequestRefused as refusal:
            if not str(refusal).startswith(NEVER_SPEAKS) or "output" in self._args.options:
                raise
        del self._options["output"]
        return await self._receive()

    async def _receive(self) -> "Reply":
        reply = Reply(self._open_sinks(), self._args.json)
        talk = self._conversation
        try:
            reply.tally = await follow(
                self.client.converse(talk.turns, *talk.audio, **self._options), reply.on_event, shows_progress=False
            )
        finally:
            reply.close()
        self._num_replies += 1
        return reply

    def _open_sinks(self) -> list[Sink]:
        player = find_player() if self._args.play == "auto" else None
        folder = self._args.out_dir or (None if player else Path())
        file = AudioFile(folder / f"reply-{self._num_replies + 1}.wav") if folder is not None else None
        return [sink for sink in (file, player) if sink]


class Reply:
    """Reply in progress, with its text and codes. Its audio is written to `sinks`."""

    def __init__(self, sinks: list[Sink], is_quiet: bool):
        self._sinks, self._is_quiet = sinks, is_quiet
        self._codes: list[NDArray[np.int32]] = []
        self.tally = Tally(shows_progress=False)

    def on_event(self, event: SpeechEvent) -> None:
        """Print the text and write the audio of an event."""
        if not self._is_quiet:
            print(event.text, end="", flush=True)
        if event.codes is not None:
            self._codes.append(event.codes)
        if event.pcm is not None and len(event.pcm):
            for sink in self._sinks:
                sink.write(event.pcm, event.sample_rate)

    def close(self) -> None:
        """Close the sinks."""
        for sink in self._sinks:
            sink.close()

    @property
    def codes(self) -> NDArray[Any] | None:
        """Codes [S, T] of all streams; None if there is no audio or codes were not requested."""
        return np.concatenate(self._codes, axis=1) if self._codes else None

    @property
    def file(self) -> str | None:
        """Path of the audio file; None if none is written."""
        paths = [str(sink.path) for sink in self._sinks if isinstance(sink, AudioFile)]
        return paths[0] if paths and self.tally.audio_s else None

    def record(self) -> dict[str, Any]:
        """Return the reply's statistics for JSON."""
        return self.tally.record() | {"file": self.file}

    def summary(self) -> str:
        """Return a one-line summary like that of `speak`."""
        return (f"{self.file}: " if self.file else "") + self.tally.summary()


DEFAULT_OUT, DEFAULT_SERVER = Path("speech.wav"), "localhost:8001"
STANDARD_INPUT = Path("-")


class Parser(argparse.ArgumentParser):
    """Argument parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parse(argv: list[str] | None, prog: str) -> argparse.Namespace:
    """Return the command and its options; exit with status 2 if they are invalid."""
    parser = Parser(prog=prog, description="Speak, transcribe and talk through the server.")
    shared = Parser(add_help=False)
    shared.add_argument("--server", metavar="HOST:PORT", help="its gRPC port; default: this machine's server")
    shared.add_argument("--seed", type=int, help="the same seed gives the same codes; default: random, and reported")
    shared.add_argument("--options", type=json_object, default={}, metavar="JSON", help="any option of the server")
    shared.add_argument("--timeout", type=float, default=300.0, metavar="S", help="for the whole request")
    shared.add_argument("--json", action="store_true", help="print the summary as JSON")
    commands = parser.add_subparsers(dest="command", required=True)
    speak = commands.add_parser("speak", parents=[shared], help="text to speech")
    speak.add_argument("text", help="text to speak; - streams standard input")
    speak.add_argument("--task", default="tts", help="name of the model's task; default: tts")
    speak.add_argument("--out", type=Path, metavar="FILE", help="wav, flac, ogg or mp3; grows as audio arrives")
    speak.add_argument("--play", choices=["auto", "off"], default="auto", help="play the audio if a player is found")
    speak.add_argument("--voice", help="a voice of the model")
    speak.add_argument(
        "--clone", type=Path, metavar="FILE", help="or the voice of a recording, if the model clones voices"
    )
    speak.add_argument(
        "--clone-text", default="", metavar="TEXT", help="transcript of that recording; the speech continues it"
    )
    speak.add_argument("--guidance", type=float, dest="guidance_scale", metavar="SCALE", help="1 is unguided")
    speak.add_argument("--encoding", choices=["pcm_f32le", "pcm_s16le"], help="format of the samples on the wire")
    speak.add_argument("--sample-rate", type=int, metavar="HZ", help="resampled by the server; default: the codec's")
    speak.add_argument("--markup", choices=MARKUPS, default="none", help="markup that is not read aloud; default: none")
    speak.add_argument("--words", action="store_true", help="print each word and when it starts")
    transcribe = commands.add_parser("transcribe", parents=[shared], help="speech to text")
    about = "wav, flac, ogg, mp3, webm, m4a, mp4 or aac; - transcribes standard input live: 16-bit mono samples"
    transcribe.add_argument("file", type=Path, help=about)
    transcribe.add_argument("--rate", type=int, default=24_000, metavar="HZ", help="of standard input; default: 24000")
    transcribe.add_argument("--task", default="asr", help="name of the model's task; default: asr")
    duplex = commands.add_parser("talk", parents=[shared], help="speech in and out at once")
    duplex.add_argument("file", type=Path, help="audio file; - reads standard input live: 16-bit mono samples")
    duplex.add_argument("--rate", type=int, default=24_000, metavar="HZ", help="of standard input; default: 24000")
    duplex.add_argument("--task", default="duplex", help="name of the model's task; default: duplex")
    duplex.add_argument("--system", default="", metavar="TEXT", help="role of the model, if it accepts one")
    duplex.add_argument("--voice", help="a voice of the model")
    duplex.add_argument("--clone", type=Path, metavar="FILE", help="or the voice of a recording")
    duplex.add_argument("--out", type=Path, metavar="FILE", help="wav, flac, ogg or mp3; grows as audio arrives")
    duplex.add_argument("--play", choices=["auto", "off"], default="auto", help="play the audio if a player is found")
    talk = commands.add_parser("chat", parents=[shared], help="a conversation, line by line from standard input")
    talk.description = "A line is a turn: text, @FILE (audio, or codes in .npy), or @FILE text; end with Ctrl+D."
    talk.add_argument("--task", help="name of the model's task; default: the first that fits the turns")
    talk.add_argument("--system", metavar="TEXT", help="system prompt")
    talk.add_argument("--clone", type=Path, metavar="FILE", help="the voice to answer in: audio, or codes in .npy")
    talk.add_argument(
        "--out-dir",
        type=Path,
        metavar="DIR",
        help="folder for reply-1.wav, …; default: the current one if no player is found",
    )
    talk.add_argument("--play", choices=["auto", "off"], default="auto", help="play the audio if a player is found")
    args = parser.parse_args(argv)
    if not args.timeout > 0:  # also rejects nan
        parser.error(f"--timeout must be > 0 s, got {args.timeout:g}")
    recording = args.file if "file" in args else args.clone
    is_live = "file" in args and recording == STANDARD_INPUT
    if recording is not None and not is_live and not recording.is_file():
        parser.error(f"there is no file {recording}")
    if args.command == "talk" and args.clone is not None and (args.voice or not args.clone.is_file()):
        parser.error(f"--clone: expected a file, without --voice, got {args.clone}")
    if args.command == "speak" and (args.clone_text if args.clone is None else args.voice):
        parser.error("--clone-text: requires --clone FILE; --clone and --voice exclude each other")
    return args


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object, for argparse."""
    with suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")


def open_sinks(args: argparse.Namespace) -> list[Sink]:
    """Return the requested output file and the player, or a default file if neither is requested.

    Raises:
        ValueError: The file name has no supported suffix.
    """
    player = find_player() if args.play == "auto" else None
    out = args.out or (None if player else DEFAULT_OUT)
    return [sink for sink in (AudioFile(out) if out else None, player) if sink]


async def speak(client: SpeechClient, args: argparse.Namespace) -> None:
    """Play the speech or write it to a file, and print a summary."""
    sinks = open_sinks(args)
    text = standard_input() if args.text == "-" else args.text
    voice = RecordedVoice(args.clone, args.clone_text) if args.clone else args.voice
    flags = {"task": args.task, "seed": args.seed, "guidance_scale": args.guidance_scale, "voice": voice}
    flags |= {"encoding": args.encoding, "sample_rate": args.sample_rate, "markup": args.markup}

    def on_event(event: SpeechEvent) -> None:
        for word in event.words if args.words else ():
            print(f"{word.start_s:7.2f} s  {word.word}")
        if event.pcm is not None and len(event.pcm):
            for sink in sinks:
                sink.write(event.pcm, event.sample_rate)

    if args.words and "words" in (profile := await client.profile()).options and not profile.times_words:
        flags["words"] = "aligned"
    try:
        tally = await follow(client.speak(text, **args.options | given(flags)), on_event, not args.words)
    finally:
        for sink in sinks:
            sink.close()
    files = [f"{sink.path}: " for sink in sinks if isinstance(sink, AudioFile) and tally.audio_s]
    print(json.dumps(tally.record()) if args.json else "".join(files) + tally.summary())


async def transcribe(client: SpeechClient, args: argparse.Namespace) -> None:
    """Print the transcript of a file or of standard input as it is generated."""

    def read(event: SpeechEvent) -> None:
        if not args.json:
            print(event.text, end="", flush=True)

    flags = args.options | given({"task": args.task, "seed": args.seed})
    if args.file == STANDARD_INPUT:
        speech: Speech = client.transcribe_live(samples_from(sys.stdin.fileno()), args.rate, **flags)
    else:
        speech = client.transcribe(args.file, **flags)
    tally = await follow(speech, read, False)
    print(json.dumps(tally.record()) if args.json else "")
    print(f"complete after {tally.total_s:.2f} s", file=sys.stderr)


async def talk(client: SpeechClient, args: argparse.Namespace) -> None:
    """Play the reply to a file or standard input, or write it to a file, while printing its text."""
    sinks = open_sinks(args)

    def on_event(event: SpeechEvent) -> None:
        if not args.json:
            print(event.text, end="", flush=True)
        if event.pcm is not None and len(event.pcm):
            for sink in sinks:
                sink.write(event.pcm, event.sample_rate)

    flags = args.options | given({"task": args.task, "seed": args.seed})
    try:
        if args.file == STANDARD_INPUT:
            voice = args.voice if args.clone is None else RecordedVoice(args.clone)
            pieces = samples_from(sys.stdin.fileno())
            speech: Speech = client.talk(pieces, args.rate, system=args.system, voice=voice, **flags)
        elif args.system or args.clone is not None:
            turns = [system_turn(args.system, args.clone), {"role": "user", "audio": "audio"}]
            recordings = [file for file in (args.clone, args.file) if file is not None]
            speech = client.converse(turns, *recordings, **flags | given({"voice": args.voice}))
        else:
            speech = client.transcribe(args.file, **flags | given({"voice": args.voice}))
        tally = await follow(speech, on_event, False)
    finally:
        for sink in sinks:
            sink.close()
    print(json.dumps(tally.record()) if args.json else "")
    print(tally.summary(), file=sys.stderr)


async def run(args: argparse.Namespace) -> None:
    """Run a command with a client for the command's server."""
    async with SpeechClient(args.server, Timeouts(total_s=args.timeout)) as client:
        await {"speak": speak, "transcribe": transcribe, "talk": talk}[args.command](client, args)


def main(
    argv: list[str] | None = None,
    default_server: Callable[[], str] = lambda: DEFAULT_SERVER,
    prog: str = "python -m stretto_client",
) -> int:
    """Run a command, print errors to standard error, and return the exit status.

    Args:
        argv: Arguments; None for the arguments of the process.
        default_server: Function that returns the server's address if the command does not contain one.
        prog: Program name in messages.
    """
    args = parse(argv, prog)
    try:
        args.server = args.server or default_server()
        if args.command == "chat":
            return chat(args)
        asyncio.run(run(args))
    except ClientError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
