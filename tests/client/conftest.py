"""Fake Triton module, for client tests against the server's own responses, and the command line in this process."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from stretto_client import SpeechClient, Timeouts
from stretto_client.__main__ import main
from tests import fakes_triton
from tests.client.fake_server import PROFILE, FakeServer, Request, Step

fakes_triton.install()  # before the modules under test are imported
Script = Callable[[Request], list[Step]]
Serve = Callable[..., Awaitable[tuple[FakeServer, SpeechClient]]]


def status_of(words: list[str]) -> int | str | None:
    """Run a command and return its exit status."""
    try:
        return main(words)
    except SystemExit as end:
        return end.code


class CommandLine:
    """Function that runs a command against a scripted server.

    Attributes:
        requests: Those that the server has received from the last command.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.requests: list[Request] = []
        self._servers: list[FakeServer] = []
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    async def __call__(
        self, script: list[Step] | Script, *arguments: str, stdin: bytes = b""
    ) -> tuple[int | str | None, str, str]:
        """Run a command; return its status, output and errors."""
        self._servers.append(FakeServer(script if callable(script) else lambda _: script))
        address = await self._servers[-1].start()
        reading, writing = os.pipe()
        with os.fdopen(reading) as pipe, os.fdopen(writing, "wb") as input_:
            input_.write(stdin)  # a pipe holds 64 KiB
            input_.close()
            self._monkeypatch.setattr(sys, "stdin", pipe)
            status = await asyncio.to_thread(status_of, [*arguments, "--server", address])
        self.requests = self._servers[-1].requests
        return status, *self._capsys.readouterr()

    async def stop(self) -> None:
        """Stop the servers."""
        for server in self._servers:
            await server.stop()


@pytest.fixture
async def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> AsyncIterator[CommandLine]:
    """Run commands in an empty folder, without programs that play audio."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    commands = CommandLine(monkeypatch, capsys)
    yield commands
    await commands.stop()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Start scripted servers, each with a client; all end with the test."""
    started = list[tuple[FakeServer, SpeechClient]]()

    async def start(
        script: list[Step] | Script, profile: dict[str, Any] | None = PROFILE, timeouts: Timeouts | None = None
    ) -> tuple[FakeServer, SpeechClient]:
        server = FakeServer(script if callable(script) else lambda _: script, profile=profile)
        started.append((server, SpeechClient(await server.start(), timeouts)))
        return started[-1]

    yield start
    for server, client in started:
        await client.close()
        await server.stop()
