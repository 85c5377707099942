"""`stretto chat`: a conversation in which each line of standard input is a turn of the user."""

import argparse
import asyncio
import codecs
import json
import os
import stat
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stretto_client.client import SpeechClient
from stretto_client.conversation import Conversation
from stretto_client.errors import RequestRefused, Timeouts
from stretto_client.sinks import AudioFile, Sink, Tally, find_player, follow
from stretto_client.speech_stream import SpeechEvent, given

MAX_READ_BYTES = 65_536


def standard_input() -> str | AsyncIterator[str]:
    """Return the whole text of a file, or an iterator over text from a pipe.

    Raise UnicodeDecodeError if it is not UTF-8.
    """
    descriptor = sys.stdin.fileno()
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return sys.stdin.read()
    return pieces_from(descriptor)


async def pieces_from(descriptor: int) -> AsyncIterator[str]:
    """Yield text in whole characters as it arrives at a file descriptor, which a daemon thread reads."""
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
            except RuntimeError:  # the event loop has ended
                return
            if not data or isinstance(data, OSError):
                return

    threading.Thread(target=read, name="standard input", daemon=True).start()
    decoder = codecs.getincrementaldecoder("utf-8")()
    while True:
        data = await came.get()
        if isinstance(data, OSError):
            raise data
        text = decoder.decode(data, final=not data)
        if text:
            yield text
        if not data:
            return
        wanted.release()


# beginning of the server's error for `output` with a task that replies in text
NEVER_SPEAKS = "options.output: expected no value"


def chat(args: argparse.Namespace) -> int:
    """Answer turn by turn until the input ends; return 2 if a turn was rejected, 0 otherwise.

    A rejected turn does not become part of the conversation. On a terminal, Ctrl-C during a reply cancels only that
    reply; otherwise it ends the chat.
    """
    status = 0
    if args.out_dir is not None:
        args.out_dir.mkdir(parents=True, exist_ok=True)
    with asyncio.Runner() as runner:  # the event loop runs once per turn; input is read between turns
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
    """Return text and file of a line: `text`, `@file`, or `@file text`."""
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
        # The codes of a reply are sent in later turns, so that the model's voice stays the same.
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
    """Reply in progress: its text, its codes, and its audio, which is written to `sinks`."""

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
