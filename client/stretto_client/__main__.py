"""Command line `stretto` or `python -m stretto_client`: speak, transcribe, talk and chat.

The exit status is 0 for success, 1 if the server failed, 2 for a rejected request or invalid arguments, 3 if there is
no server, 4 after a timeout, 130 after an interrupt, and 141 if the reader of an output has left.

`stretto chat` holds a conversation in which each line of standard input is a user turn.
"""

import argparse
import asyncio
import json
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from stretto_client.arguments import STANDARD_INPUT, parse
from stretto_client.client import SpeechClient
from stretto_client.console import TextDecoder, described, is_of_stream, run
from stretto_client.errors import RequestRefused, Timeouts, exit_status
from stretto_client.long_speech import Speech
from stretto_client.sinks import AudioFile, Sink, find_player
from stretto_client.speech_stream import Conversation, SpeechEvent, given, system_turn
from stretto_client.tally import Tally, follow
from stretto_client.voices import RecordedVoice

MAX_READ_BYTES = 65_536


def standard_input() -> str | AsyncIterator[str]:
    """Return the complete text if standard input is a file, or an iterator over the text from a pipe."""
    descriptor = open_input()
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return TextDecoder("standard input").decode(sys.stdin.buffer.read(), is_last=True)
    return pieces_from(descriptor)


def recording(path: Path) -> Path | bytes:
    """Return the path of a regular file, or the content of a pipe; `-` is standard input.

    Call it before the event loop runs, so that an interrupt ends the wait for a pipe's writer.
    """
    if path == STANDARD_INPUT:
        open_input()
        return sys.stdin.buffer.read()
    return path if path.is_file() else path.read_bytes()


def open_input() -> int:
    """Return the descriptor of standard input; raise ValueError if it was closed when this process started."""
    if sys.__stdin__ is None:
        raise ValueError("standard input is closed")
    return sys.stdin.fileno()


async def pieces_from(descriptor: int) -> AsyncIterator[str]:
    """Yield text, in whole characters, as it arrives at a file descriptor."""
    decoder = TextDecoder("standard input")
    async for data in bytes_from(descriptor):
        if text := decoder.decode(data):
            yield text
    if text := decoder.decode(b"", is_last=True):
        yield text


async def samples_in(parts: AsyncIterator[bytes]) -> AsyncIterator[NDArray[Any]]:
    """Convert 16-bit little-endian bytes to samples, int16 [n], as they arrive."""
    left = b""
    async for data in parts:
        data = left + data
        even = len(data) // 2 * 2
        left = data[even:]
        yield np.frombuffer(data[:even], "<i2")


# First bytes of audio files. An mp3 file without tags is not among them, because it may begin like plain samples.
MAGIC = (b"RIFF", b"RF64", b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3", b"FORM", b"caff")
MP4_MAGIC = b"ftyp"  # follows the first four bytes


async def spoken_input() -> bytes | AsyncIterator[NDArray[Any]]:
    """Return the audio file on standard input, or an iterator over plain samples, int16 [n], while they arrive."""
    parts = bytes_from(open_input())
    head = b""
    while len(head) < len(MP4_MAGIC) * 2 and (data := await anext(parts, b"")):
        head += data
    if head.startswith(MAGIC) or head[4:].startswith(MP4_MAGIC):
        return b"".join([head, *[data async for data in parts]])

    async def all_parts() -> AsyncIterator[bytes]:
        yield head
        async for data in parts:
            yield data

    return samples_in(all_parts())


async def bytes_from(descriptor: int) -> AsyncIterator[bytes]:
    """Yield bytes as they arrive at a file descriptor, which a daemon thread reads."""
    loop = asyncio.get_running_loop()
    came = asyncio.Queue[bytes | OSError]()
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
                    if is_of_stream(error):
                        raise
                    print(f"error: {described(error)}", file=sys.stderr)
                    status = 2
                except KeyboardInterrupt:
                    if not sys.stdin.isatty():
                        raise
                    print("interrupted", file=sys.stderr)
        finally:
            runner.run(talk.client.close())
    return status


async def _begin(args: argparse.Namespace) -> "PrintedConversation":
    return PrintedConversation(SpeechClient(args.server, Timeouts(total_s=args.timeout)), args)


def _lines() -> Iterator[str]:
    """Yield the non-empty input lines; show a prompt on a terminal."""
    for line in _terminal_lines() if sys.stdin.isatty() else _file_lines():
        if line.strip():
            yield line.strip()


def _terminal_lines() -> Iterator[str]:
    with suppress(EOFError):
        while True:
            yield input("> ")


def _file_lines() -> Iterator[str]:
    decoder = TextDecoder("standard input")
    left = ""
    data = b"\n"
    while data:
        data = os.read(sys.stdin.fileno(), MAX_READ_BYTES)
        *lines, left = (left + decoder.decode(data, is_last=not data)).split("\n")
        yield from lines
    yield left


def _read_turn(line: str) -> tuple[str | None, Path | None]:
    """Return the text and the file in a line of the form `text`, `@file` or `@file text`."""
    if not line.startswith("@"):
        return line, None
    if Path(line[1:]).is_file():
        return None, Path(line[1:])
    name, _, text = line[1:].partition(" ")
    return text.strip() or None, Path(name)


class PrintedConversation:
    """Conversation with the server, printed as it proceeds."""

    def __init__(self, client: SpeechClient, args: argparse.Namespace):
        self.client = client
        self._args = args
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

    async def _ask(self) -> "PlayedReply":
        try:
            return await self._receive()
        except RequestRefused as refusal:
            if not str(refusal).startswith(NEVER_SPEAKS) or "output" in self._args.options:
                raise
        del self._options["output"]
        return await self._receive()

    async def _receive(self) -> "PlayedReply":
        reply = PlayedReply(self._open_sinks(), self._args.json)
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


class PlayedReply:
    """Reply in progress, with its text and codes. Its audio is written to `sinks`."""

    def __init__(self, sinks: list[Sink], is_quiet: bool):
        self._sinks = sinks
        self._is_quiet = is_quiet
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
        """Return a one-line summary with the file's path."""
        return (f"{self.file}: " if self.file else "") + self.tally.summary()


DEFAULT_OUT = Path("speech.wav")
DEFAULT_SERVER = "localhost:8001"


def open_sinks(args: argparse.Namespace) -> list[Sink]:
    """Return the requested output file and the player, or a default file if neither is requested.

    Audio on standard output is not played, because another program may play it.
    """
    file = AudioFile(args.out) if args.out else None
    if file is not None and file.is_standard_output:
        return [file]
    player = find_player() if args.play == "auto" else None
    if file is None and player is None:
        file = AudioFile(DEFAULT_OUT)
    return [sink for sink in (file, player) if sink]


def text_stream(sinks: list[Sink]) -> TextIO:
    """Return the stream for text: standard output, or standard error if samples go to standard output."""
    has_samples = any(isinstance(sink, AudioFile) and sink.is_standard_output for sink in sinks)
    return sys.stderr if has_samples else sys.stdout


async def speak(client: SpeechClient, args: argparse.Namespace) -> None:
    """Play the speech or write it to a file, and print a summary."""
    sinks = open_sinks(args)
    output = text_stream(sinks)
    text = standard_input() if args.text == "-" else args.text
    voice = args.voice if args.clone is None else RecordedVoice(args.clone, args.clone_text)
    flags = {"task": args.task, "seed": args.seed, "guidance_scale": args.guidance_scale, "voice": voice}
    flags |= {"encoding": args.encoding, "sample_rate": args.sample_rate, "markup": args.markup}
    flags |= {"check": args.check, "hold_s": args.hold_s, "check_with": args.check_with}
    flags |= {"language": args.language, "instruct": args.instruct, "join": args.join}

    def on_event(event: SpeechEvent) -> None:
        for word in event.words if args.words else ():
            print(f"{word.start_s:7.2f} s  {word.word}", file=output)
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
    files = [f"{sink.name}: " for sink in sinks if isinstance(sink, AudioFile) and tally.audio_s]
    print(json.dumps(tally.record()) if args.json else "".join(files) + tally.summary(), file=output)


async def transcribe(client: SpeechClient, args: argparse.Namespace) -> None:
    """Print the transcript of a file or of standard input as it is generated."""

    def read(event: SpeechEvent) -> None:
        if not args.json:
            print(event.text, end="", flush=True)

    flags = args.options | given({"task": args.task, "seed": args.seed})
    audio = await spoken_input() if args.file == STANDARD_INPUT else args.file
    if isinstance(audio, bytes | Path):
        speech: Speech = client.transcribe(audio, **flags)
    else:
        speech = client.transcribe_live(audio, args.rate, **flags)
    tally = await follow(speech, read, False)
    print(json.dumps(tally.record()) if args.json else "")
    print(f"complete after {tally.total_s:.2f} s", file=sys.stderr)


async def talk(client: SpeechClient, args: argparse.Namespace) -> None:
    """Send a recording to the model; play or write the spoken reply while printing its text."""
    sinks = open_sinks(args)
    output = text_stream(sinks)

    def on_event(event: SpeechEvent) -> None:
        if not args.json:
            print(event.text, end="", flush=True, file=output)
        if event.pcm is not None and len(event.pcm):
            for sink in sinks:
                sink.write(event.pcm, event.sample_rate)

    flags = args.options | given({"task": args.task, "seed": args.seed})
    audio = await spoken_input() if args.file == STANDARD_INPUT else args.file
    try:
        if not isinstance(audio, bytes | Path):
            voice = args.voice if args.clone is None else RecordedVoice(args.clone)
            speech: Speech = client.talk(audio, args.rate, system=args.system, voice=voice, **flags)
        elif args.system or args.clone is not None:
            turns = [system_turn(args.system, args.clone), {"role": "user", "audio": "audio"}]
            recordings = [file for file in (args.clone, audio) if file is not None]
            speech = client.converse(turns, *recordings, **flags | given({"voice": args.voice}))
        else:
            speech = client.transcribe(audio, **flags | given({"voice": args.voice}))
        tally = await follow(speech, on_event, False)
    finally:
        for sink in sinks:
            sink.close()
    print(json.dumps(tally.record()) if args.json else "", file=output)
    print(tally.summary(), file=sys.stderr)


async def request(args: argparse.Namespace) -> None:
    """Run `speak`, `transcribe` or `talk` with a client for the command's server."""
    async with SpeechClient(args.server, Timeouts(total_s=args.timeout)) as client:
        await {"speak": speak, "transcribe": transcribe, "talk": talk}[args.command](client, args)


def main(
    argv: list[str] | None = None,
    default_server: Callable[[], str] = lambda: DEFAULT_SERVER,
    prog: str = "python -m stretto_client",
) -> int:
    """Run a command, print errors to standard error, and return the exit status.

    Errors of standard output are raised (see `console.run`).

    Args:
        argv: Arguments; None for the arguments of the process.
        default_server: Function that returns the server's address if the command does not contain one.
    """
    return perform(parse(argv, prog), default_server)


def perform(args: argparse.Namespace, default_server: Callable[[], str]) -> int:
    """Run a command whose arguments have been parsed, and return the exit status; see `main`."""

    def command() -> int:
        args.server = args.server or default_server()
        if args.command == "chat":
            return chat(args)
        if "clone" in args and args.clone is not None:
            args.clone = recording(args.clone)
        if "file" in args and args.file != STANDARD_INPUT:
            args.file = recording(args.file)
        asyncio.run(request(args))
        return 0

    return exit_status(command)


if __name__ == "__main__":
    sys.exit(run(main))
