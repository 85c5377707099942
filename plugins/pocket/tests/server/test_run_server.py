"""`stretto run` with a real server: its audio is that of the commands by hand, and nothing is asked twice."""

import io
import json
import os
import subprocess
import sys
import wave
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import soundfile

from plugins.pocket.lab.random_pocket import write_release
from tests.hub import Hub
from tests.installed_models import contents
from tests.ports import free_row
from tests.server.conftest import served_repository

# By night, because the commands import torch twice and start two servers.
pytestmark = [pytest.mark.server, pytest.mark.nightly]

SENTENCE = "It is ten."
COMMAND_S = 900
# Otherwise the last bit of a sample depends on when its frame was decoded.
SEEDED = ("--seed", "7", "--options", '{"chunking": {"deterministic": true}}')


@dataclass
class User:
    """A user with folders and ports of their own, and a hub that has acme/voice.

    Attributes:
        hub: The hub.
        folder: Current folder of the commands; `models` has the installed models, `release` is that of the hub.
        environment: Environment of the commands.
    """

    hub: Hub
    folder: Path
    environment: dict[str, str]

    def stretto(self, *words: str, status: int = 0, **settings: Any) -> "subprocess.CompletedProcess[bytes]":
        """Run a command, check its exit status, and return what it has printed."""
        outputs = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        if "input" in settings:
            del outputs["stdin"]
        command = [sys.executable, "-m", "stretto", *words]
        settings = outputs | settings | {"env": self.environment, "cwd": self.folder, "timeout": COMMAND_S}
        done: subprocess.CompletedProcess[bytes] = subprocess.run(command, check=False, **settings)
        assert done.returncode == status, (words, done.stderr)
        return done


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    folder = tmp_path_factory.mktemp("user")
    with Hub() as hub:
        hub.add("acme/voice", write_release(folder / "release"), card={"license": "mit"})
        own = {"STRETTO_MODELS": str(folder / "models"), "STRETTO_PORT": str(free_row(4))}
        user = User(hub, folder, hub.environment(folder / "hub", **own))
        yield user
        user.stretto("serve", "--stop")


@pytest.fixture(scope="module")
def by_hand(user: User) -> bytes:
    """Return the WAV of the commands that `stretto run` replaces, with a folder instead of a download."""
    user.stretto("convert", "pocket-tts", "--model", "release", "--out", "checkpoint")
    user.stretto("make-repository", "--checkpoint", "checkpoint", "--out", "repository")
    (user.folder / "server").mkdir()
    with served_repository(user.folder / "server", user.folder / "repository") as server:
        return user.stretto("speak", SENTENCE, *SEEDED, "--out", "-", "--server", f"localhost:{server.grpc}").stdout


@pytest.fixture(scope="module")
def spoken(user: User, by_hand: bytes) -> bytes:
    """Return the WAV of the first `stretto run`; its server keeps running."""
    user.stretto("pull", "acme/voice")
    assert by_hand
    done = user.stretto("run", "acme/voice", SENTENCE, *SEEDED)
    assert b"it keeps running until stretto serve --stop" in done.stderr
    return done.stdout


def test_audio_is_that_of_the_commands_by_hand(spoken: bytes, by_hand: bytes) -> None:
    assert len(spoken) > 10_000
    assert spoken == by_hand


def test_checkpoint_is_that_of_the_converter(user: User, spoken: bytes) -> None:
    (installed,) = (user.folder / "models").glob("voice--*/checkpoint")
    assert contents(installed) == contents(user.folder / "checkpoint")


def test_second_run_neither_asks_nor_writes(user: User, spoken: bytes) -> None:
    asked = len(user.hub.requests)
    written = contents(user.folder / "models")
    again = user.stretto("run", "acme/voice", SENTENCE, *SEEDED)
    assert again.stdout == spoken
    assert user.stretto("run", "acme/voice", "-", *SEEDED, "--offline", input=SENTENCE.encode()).stdout == spoken
    assert len(user.hub.requests) == asked
    assert contents(user.folder / "models") == written
    assert b"\r" not in again.stderr
    assert b"\x1b" not in again.stderr


def test_wav_in_a_pipe_and_in_a_file(user: User, spoken: bytes) -> None:
    pcm, rate = soundfile.read(io.BytesIO(spoken), dtype="int16")
    assert rate == 24_000
    with wave.open(io.BytesIO(spoken)) as pipe:
        assert (pipe.getframerate(), pipe.getnchannels(), pipe.getsampwidth()) == (24_000, 1, 2)
        assert pipe.readframes(pipe.getnframes()) == pcm.tobytes()
    with (user.folder / "a.wav").open("wb") as output:
        user.stretto("run", "acme/voice", SENTENCE, *SEEDED, stdout=output)
    user.stretto("run", "acme/voice", SENTENCE, *SEEDED, "--out", "b.wav")
    for name in ("a.wav", "b.wav"):
        with wave.open(str(user.folder / name)) as file:
            assert file.getnframes() == len(pcm), "the length is known at the end"
            assert file.readframes(len(pcm)) == pcm.tobytes()


@pytest.mark.parametrize("has_player", [True, False])
def test_speech_at_a_terminal_is_played_or_written(user: User, spoken: bytes, has_player: bool, tmp_path: Path) -> None:
    player = tmp_path / "aplay"
    front_back = os.openpty()
    if has_player:
        player.write_text(f"#!/bin/sh\nexec /bin/cat >{tmp_path}/played\n")
        player.chmod(0o755)
    alone = replace(user, environment=user.environment | {"PATH": str(tmp_path)}, folder=tmp_path)
    try:
        alone.stretto("run", "acme/voice", SENTENCE, *SEEDED, stdout=front_back[1])
    finally:
        for descriptor in front_back:
            os.close(descriptor)
    pcm = soundfile.read(io.BytesIO(spoken), dtype="int16")[0].tobytes()
    if has_player:
        assert (tmp_path / "played").read_bytes() == pcm
        assert not (tmp_path / "speech.wav").exists()
    else:
        assert soundfile.read(tmp_path / "speech.wav", dtype="int16")[0].tobytes() == pcm


def test_text_comes_from_a_pipe_or_a_file(user: User, spoken: bytes) -> None:
    assert user.stretto("run", "acme/voice", *SEEDED, input=SENTENCE.encode()).stdout == spoken
    (user.folder / "text").write_text(SENTENCE)
    with (user.folder / "text").open() as text:
        assert user.stretto("run", "acme/voice", *SEEDED, stdin=text).stdout == spoken
    refused = user.stretto("run", "acme/voice", input=b"", status=2)
    assert b"text: expected at least one character, got none" in refused.stderr


def test_closed_output_ends_the_command(user: User, spoken: bytes) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as output:
        done = user.stretto("run", "acme/voice", SENTENCE, status=141, stdout=output)
    assert b"Traceback" not in done.stderr


def test_rejected_requests_have_the_message_of_the_server(user: User, spoken: bytes) -> None:
    done = user.stretto("run", "acme/voice", SENTENCE, "--voice", "nobody", status=2)
    assert done.stderr == b"error: options.voice: expected one of alba, jean, got 'nobody'\n"


def test_served_model_is_named_and_removed_only_after_the_server(user: User, spoken: bytes) -> None:
    """The last test: it stops the server."""
    port = int(user.environment["STRETTO_PORT"])
    listed = json.loads(user.stretto("ps", "--json").stdout)
    assert [(each["model"]["name"], each["state"]) for each in listed if each["ports"]["http"] == port] == [
        ("voice", "ready")
    ]
    refused = user.stretto("rm", "acme/voice", status=1)
    assert b"stretto rm: voice is served by pid " in refused.stderr
    user.stretto("run", "release", status=5)
    busy = user.stretto("run", "./release", SENTENCE, status=1)
    assert f"port {port} serves voice".encode() in busy.stderr
    user.stretto("serve", "--stop")
    user.stretto("rm", "acme/voice", "--sources")
    assert list((user.folder / "models").glob("voice--*")) == []
    assert list((user.folder / "hub").rglob("*.safetensors")) == []
