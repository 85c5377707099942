"""`stretto voices` uses the same files, owners and limits as `/v1/audio/voices`, with or without a running gateway."""

import asyncio
import dataclasses
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stretto.cli import main as stretto
from stretto_gateway import voice_command, voice_store
from stretto_gateway.command import VOICES
from stretto_gateway.config import Limits
from stretto_gateway.voice_command import main
from stretto_gateway.voice_store import TooManyVoices, VoiceStore
from tests.client.fake_server import PROFILE, ErrorText, FakeServer
from tests.gateway.conftest import SPOKEN, Start
from tests.gateway.test_voices import ABOUT, CLONES, KEYS, RECORDING, Caller, added_voice, cloning, told
from tests.patience import PATIENCE_S
from tests.tiers import by_night

NAMED = ("--name", "mine", "--consent", "my own")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create the folder of the voices and set its environment variable."""
    monkeypatch.setenv(VOICES, str(tmp_path / "voices"))
    return tmp_path / "voices"


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "me.wav"
    path.write_bytes(RECORDING)
    return path


def key_file(folder: Path, key: str) -> str:
    path = folder / key
    path.write_text(f"{key}\n")
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *words: object, status: int = 0) -> str:
    """Run a command and return its output or errors."""
    capsys.readouterr()
    assert main([str(word) for word in words]) == status
    out, err = capsys.readouterr()
    return err if status else out


@pytest.fixture
async def clones() -> AsyncIterator[tuple[FakeServer, str]]:
    """Start a fake server whose model clones voices, and yield it with its address."""
    server = FakeServer(lambda _: SPOKEN, profile=CLONES)
    yield server, await server.start()
    await server.stop()


async def test_command_refuses_the_name_of_a_voice_of_the_model(
    clones: tuple[FakeServer, str], folder: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["add", str(recording), "--name", "RMS", "--consent", "my own", "--server", clones[1]]
    assert await asyncio.to_thread(main, words) == 2
    assert "name: expected a name that no voice of 'tiny' has, got 'RMS'" in capsys.readouterr().err
    assert not list(folder.glob("*/*"))


async def test_running_gateway_sees_voices_added_and_removed_by_command(
    start: Start, clones: tuple[FakeServer, str], folder: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running, (server, address) = await start(SPOKEN, CLONES, voices=folder), clones
    described = [word for name, text in ABOUT.items() for word in (f"--{name}", text)]
    words = ["add", str(recording), *NAMED, "--text", "It is me.", "--server", address, *described]
    capsys.readouterr()
    assert await asyncio.to_thread(main, words) == 0
    voice = capsys.readouterr().out.strip()
    assert told(server.requests[0]) == ({"role": "system", "audio": "audio", "text": "It is me."}, RECORDING)
    (listed,) = (await Caller(running).list())["data"]
    assert (listed["id"], listed["name"], listed["consent"], listed["ref_text"]) == (
        voice,
        "mine",
        "my own",
        "It is me.",
    )
    assert (await Caller(running).speak(voice)).status_code == 200
    uploaded = await added_voice(running)
    found = [json.loads(line) for line in run(capsys, "list", "--json").splitlines()]
    assert {each["id"] for each in found} == {voice, uploaded}
    assert listed.items() >= ABOUT.items()
    stored = next(each for each in found if each["id"] == voice)
    assert stored == listed
    run(capsys, "remove", voice, uploaded)
    assert (await Caller(running).list())["data"] == []
    assert (await Caller(running).speak(voice)).json()["error"]["code"] == "voice_not_found"


async def test_voices_belong_to_a_key_and_the_operator_sees_all(
    start: Start, folder: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = await start(SPOKEN, CLONES, keys=KEYS, voices=folder)
    first = key_file(tmp_path, KEYS[0])
    own = run(capsys, "add", recording, *NAMED, "--untried", "--key-file", first).strip()
    other = await added_voice(running, KEYS[1])
    everybody = run(capsys, "add", recording, *NAMED, "--untried").strip()
    assert [each["id"] for each in (await Caller(running, KEYS[0]).list())["data"]] == [own]
    assert [line.split()[0] for line in run(capsys, "list", "--key-file", first).splitlines()] == [own]
    assert [line.split()[0] for line in run(capsys, "list").splitlines()] == [everybody]
    everything = run(capsys, "list", "--all-keys")
    assert {line.split()[0] for line in everything.splitlines()} == {own, other, everybody}
    assert not any(key in everything for key in KEYS)
    assert run(capsys, "remove", other, "--key-file", first, status=1) == f"stretto voices: no voice '{other}'\n"
    run(capsys, "remove", other, own, "--all-keys")
    assert {line.split()[0] for line in run(capsys, "list", "--all-keys").splitlines()} == {everybody}


def test_stored_voice_files_are_private_and_persistent(
    folder: Path, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice = run(capsys, "add", recording, *NAMED, "--untried").strip()
    (path,) = folder.glob("*/*")
    assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    found = VoiceStore(folder, 1).find("everybody", voice)
    assert found is not None
    assert found[1] == RECORDING


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        "add <(sleep 0.2; cat me.wav)",
        *by_night("add - < me.wav", "add <(cat me.wav)", "add /dev/stdin < me.wav", "add pipe"),
    ],
)
def test_recording_and_key_are_read_from_pipes(folder: Path, recording: Path, tmp_path: Path, given: str) -> None:
    start = f"cd {tmp_path}; mkfifo pipe; " + ("cat me.wav > pipe & " if "pipe" in given else "")
    stretto = f"{sys.executable} -m stretto voices"
    line = f"{start} {stretto} {given} --name mine --consent own --untried --key-file <(echo {KEYS[0]})"
    subprocess.run(["bash", "-c", line], check=True, timeout=PATIENCE_S, env=os.environ | {VOICES: str(folder)})
    store = VoiceStore(folder, 1)
    (owner,) = store.owners()
    (voice,) = store.all(owner)
    assert voice.name == "mine"
    found = store.find(owner, voice.id)
    assert found is not None
    assert found[1] == RECORDING


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["add", "FILE", "--name", "", "--consent", "a"], 2, "--name: expected 1 to 100 printable characters, got ''"),
        (["add", "FILE", "--name", "a\nb", "--consent", "a"], 2, r"--name: expected 1 to 100 printable characters"),
        (["add", "FILE", "--name", "a", "--consent", "a" * 201], 2, "--consent: expected 1 to 200 printable"),
        (["add", "FILE", *NAMED, "--text", "a" * 4001], 2, "--text: expected 0 to 4000 printable"),
        (["add", "FILE", *NAMED, "--language", "a" * 41], 2, "--language: expected 0 to 40 printable"),
        (["add", "FILE", *NAMED, "--gender", "a" * 41], 2, "--gender: expected 0 to 40 printable"),
        (["add", "FILE", *NAMED, "--description", "a" * 501], 2, "--description: expected 0 to 500 printable"),
        (["add", "missing.wav", *NAMED], 1, "missing.wav: No such file or directory"),
        (["add", "FILE", *NAMED, "--server", "localhost:1"], 3, "localhost:1"),
        (["add", "EMPTY", *NAMED, "--untried"], 2, "FILE: expected a file of 1 to "),
        (["add", "FIFO", *NAMED, "--untried"], 2, "FILE: expected a regular file, got "),
        (["list", "--key-file", "FIFO"], 2, "--key-file: expected a regular file, got "),
        (["list", "--key-file", "FILE"], 2, "--key-file: expected one key of at least 16 ASCII characters in"),
        (["remove", "../../voices"], 1, "no voice '../../voices'"),
        (["list", "--voices", "FILE"], 1, "File exists"),
    ],
)
def test_error_names_invalid_voice_command_arguments(
    folder: Path, recording: Path, capsys: pytest.CaptureFixture[str], words: list[str], status: int, message: str
) -> None:
    files = {word: str(recording.parent / word) for word in ("EMPTY", "FIFO")} | {"FILE": str(recording)}
    Path(files["EMPTY"]).touch()
    os.mkfifo(files["FIFO"])
    said = run(capsys, *(files.get(word, word) for word in words), status=status)
    assert said.startswith("stretto voices: ")
    assert message in said
    assert not [*folder.glob("*/*")]


@pytest.mark.parametrize(
    ("profile", "steps", "words", "message"),
    [
        (PROFILE, SPOKEN, [], "model: 'tiny' does not clone voices"),
        (cloning("audio"), SPOKEN, ["--text", "It is me."], "--text: expected no value"),
        (CLONES, [ErrorText("invalid request: audio: expected at most 30 s")], [], "expected at most 30 s"),
    ],
)
async def test_voice_command_does_not_store_refused_voices(
    folder: Path,
    recording: Path,
    capsys: pytest.CaptureFixture[str],
    profile: dict[str, Any],
    steps: list[Any],
    words: list[str],
    message: str,
) -> None:
    server = FakeServer(lambda _: steps, profile=profile)
    address = await server.start()
    given = ["add", str(recording), *NAMED, "--server", address, *words]
    assert await asyncio.to_thread(main, given) == 2
    await server.stop()
    assert message in capsys.readouterr().err
    assert not [*folder.glob("*/*")]


def test_stored_voices_are_limited_in_size_and_number(
    folder: Path, recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voice_command, "Limits", lambda: Limits(max_voices=1, max_voice_bytes=len(RECORDING)))
    run(capsys, "add", recording, *NAMED, "--untried")
    assert "there are 1 voices of this key" in run(capsys, "add", recording, *NAMED, "--untried", status=1)
    recording.write_bytes(RECORDING + b".")
    assert "FILE: expected a file of 1 to 2048 bytes, got" in run(
        capsys, "add", recording, *NAMED, "--untried", status=2
    )


def test_voice_folder_of_another_user_is_not_modified(
    folder: Path, recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)
    assert "run this command as" in run(capsys, "add", recording, *NAMED, "--untried", status=2)


def test_terminal_control_characters_in_names_are_escaped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    VoiceStore(folder, 9).add("everybody", "a\x1b[2J\nb", "", "c\u202e", RECORDING)
    (line,) = run(capsys, "list").splitlines()
    assert r"a\x1b[2J\nb" in line
    assert line.isprintable()


def test_voice_command_defaults_to_the_launcher_folder(
    tmp_path: Path, recording: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VOICES, raising=False)
    monkeypatch.setattr("stretto.launcher.installation.state_folder", lambda: tmp_path)
    assert stretto(["voices", "add", str(recording), *NAMED, "--untried"]) == 0
    assert len([*(tmp_path / "voices").glob("everybody/*.recording")]) == 1
    assert "--voices: expected a folder" in run(capsys, "list", status=2)


def _add(folder: Path, barrier: Any, results: Any) -> None:
    store = VoiceStore(folder, 1)
    barrier.wait()
    try:
        results.put(store.add("everybody", "a", "", "b", b"c").id)
    except TooManyVoices:
        results.put(None)


def test_concurrent_processes_respect_the_voice_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(4), context.Queue()
    processes = [context.Process(target=_add, args=(folder, barrier, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert sum(each is not None for each in found) == 1
    assert voice_store.VoiceStore(folder, 1).owners() == ["everybody"]


async def test_an_exported_voice_is_imported_with_all_of_its_fields(
    clones: tuple[FakeServer, str], folder: Path, recording: Path, tmp_path: Path
) -> None:
    server, address = clones
    described = [word for name, text in ABOUT.items() for word in (f"--{name}", text)]
    added = ["add", str(recording), *NAMED, "--text", "It is me.", *described, "--server", address]
    assert await asyncio.to_thread(main, added) == 0
    file = tmp_path / "mine.voice"
    assert await asyncio.to_thread(main, ["export", "Mine", "-o", str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.unfinished"))
    other = tmp_path / "other"
    imported = ["import", str(file), "--voices", str(other), "--server", address]
    assert await asyncio.to_thread(main, imported) == 0
    assert [told(request)[1] for request in server.requests] == [RECORDING, RECORDING], "the server tests each voice"
    (voice,) = VoiceStore(folder, 9).all("everybody")
    store = VoiceStore(other, 9)
    (copy,) = store.all("everybody")
    assert dataclasses.replace(copy, id=voice.id, created_at=voice.created_at) == voice
    assert store.find("everybody", copy.id) == (copy, RECORDING)


def test_voices_and_files_with_fields_of_other_versions_are_read(
    folder: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "add", recording, *NAMED, "--untried")
    (stored,) = folder.glob("*/*")
    stored.write_bytes(stored.read_bytes().replace(b'{"id"', b'{"model": "tiny", "id"', 1))
    file = tmp_path / "mine.voice"
    run(capsys, "export", "mine", "-o", file)
    line, _, data = file.read_bytes().partition(b"\n")
    header = {name: value for name, value in json.loads(line).items() if name != "sha256"} | {"model": "tiny"}
    signed = json.dumps(header, sort_keys=True).encode() + b"\n" + data
    header["sha256"] = hashlib.sha256(signed).hexdigest()
    file.write_bytes(json.dumps(header).encode() + b"\n" + data)
    run(capsys, "import", file, "--untried")
    assert len(run(capsys, "list").splitlines()) == 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1] + b"!", "sha256: expected the digest of the file's content"),
        (lambda data: data.replace(b"my own", b"my OWN"), "sha256: expected the digest"),
        (lambda data: data[: data.index(b"\n")], "header: expected a line of at most"),
        (lambda data: data[: data.index(b"\n") + 1], "recording: expected 1 to 4194304 bytes, got 0 bytes"),
        (lambda data: b"[" * 60_000 + b"\n" + data, "header: expected the header of an exported voice"),
        (lambda data: data.replace(b'"my own"', b'" "'), "consent: expected text, got white space"),
        (lambda data: data.replace(b'"name": "mine"', b'"name": 7'), "name: expected the header of an exported voice"),
        (lambda data: data.replace(b'"name": "mine"', b'"name": "\\ud800"'), "header: expected the header of an"),
        (lambda data: data.replace(b'"name"', b'"../x": "a", "name"'), "sha256: expected the digest"),
        (
            lambda data: data.replace(b'"gender": ""', b'"gender": "' + b"f" * 41 + b'"'),
            "gender: expected the header of",
        ),
        (lambda data: data + bytes(5 << 20), "FILE: expected a file of 1 to "),
    ],
    ids=["recording", "metadata", "cut", "empty", "deep", "blank", "type", "surrogate", "added field", "long", "large"],
)
def test_files_that_are_no_voices_are_refused_and_nothing_is_stored(
    damage: Any, message: str, folder: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(capsys, "add", recording, *NAMED, "--untried")
    file = tmp_path / "mine.voice"
    run(capsys, "export", "mine", "-o", file)
    assert "--out: expected a new file" in run(capsys, "export", "mine", "-o", file, status=2)
    file.write_bytes(damage(file.read_bytes()))
    other = tmp_path / "other"
    assert f"stretto voices: {message}" in run(capsys, "import", file, "--voices", other, "--untried", status=2)
    assert not list(other.glob("*/*"))


def test_only_own_voices_with_one_name_are_exported(
    folder: Path, recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = key_file(tmp_path, KEYS[0])
    run(capsys, "add", recording, *NAMED, "--untried", "--key-file", key)
    out = ("-o", tmp_path / "a.voice")
    assert run(capsys, "export", "mine", *out, status=1) == "stretto voices: no voice 'mine'\n"
    voice_id = run(capsys, "add", recording, *NAMED, "--untried", "--key-file", key).strip()
    expected = "NAME: expected the id of one of your 2 voices with this name, got 'mine'"
    assert expected in run(capsys, "export", "mine", *out, "--key-file", key, status=2)
    run(capsys, "export", voice_id, *out, "--key-file", key)
