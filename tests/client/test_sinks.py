"""Files that grow as samples arrive, and players that never block."""

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from stretto_client.sinks import AudioFile, FilePlayer, StreamingPlayer, find_player, pcm16
from stretto_client.speech_stream import SpeechEvent
from stretto_client.tally import Tally
from tests.patience import PATIENCE_S

TONE = (0.5 * np.sin(np.arange(16_000) / 20)).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".WAV"])
def test_audio_file_contains_all_written_chunks(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    file = AudioFile(path)
    for start in range(0, 16_000, 640):
        file.write(TONE[start : start + 640], 16_000)
    file.close()
    pcm, rate = soundfile.read(path)
    assert rate == 16_000
    if suffix in (".wav", ".flac", ".WAV"):
        assert np.abs(pcm - TONE).max() < 1e-4
    else:
        assert np.std(pcm) == pytest.approx(np.std(TONE), rel=0.05)


def test_wav_file_is_readable_while_being_written(tmp_path: Path) -> None:
    file = AudioFile(tmp_path / "a.wav")
    file.write(TONE, 16_000)
    file.write(TONE[:100], 16_000)
    os.sync()
    assert len(soundfile.read(tmp_path / "a.wav")[0]) >= 16_000
    file.close()
    assert len(soundfile.read(tmp_path / "a.wav")[0]) == 16_100


def test_unused_audio_file_is_not_created(tmp_path: Path) -> None:
    AudioFile(tmp_path / "a.wav").close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "message"), [("a.txt", "ends in one of .wav"), ("none/a.wav", "there is no folder")])
def test_invalid_output_path_is_refused_up_front(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioFile(tmp_path / name)


def test_16_bit_samples_are_rounded_and_clipped() -> None:
    assert np.frombuffer(pcm16(np.array([0, 1, -1, 1.5, 0.5], np.float32)), "<i2").tolist() == [
        0,
        32_767,
        -32_767,
        32_767,
        16_384,
    ]


@pytest.mark.parametrize(("terminal", "is_shown"), [("xterm", True), ("dumb", False)])
def test_progress_is_shown_on_terminals_with_escape_codes(
    monkeypatch: pytest.MonkeyPatch, terminal: str, is_shown: bool
) -> None:
    monkeypatch.setenv("TERM", terminal)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True)
    tally = Tally(True, stream)
    tally.add(SpeechEvent(TONE, "u1", 0, "audio", sample_rate=16_000))
    assert ("\033[K  1.0 s" in stream.getvalue(), bool(stream.getvalue())) == (is_shown, is_shown)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for programs; PATH has only this folder and the system shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    monkeypatch.setattr("stretto_client.sinks.shutil.which", lambda name: (folder / name).exists() or None)
    return folder


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_player_receives_every_sample_and_the_rate(programs: Path, tmp_path: Path) -> None:
    install(programs, "aplay", f'echo "$@" > {tmp_path}/args; cat > {tmp_path}/heard')
    player = find_player()
    player.write(TONE, 16_000)
    player.write(TONE[:9], 16_000)
    player.close()
    assert (tmp_path / "heard").read_bytes() == pcm16(TONE) + pcm16(TONE[:9])
    assert "-r 16000" in (tmp_path / "args").read_text()


def write_often(player: StreamingPlayer) -> None:
    for _ in range(20):
        player.write(TONE, 16_000)


def test_exited_or_stalled_player_does_not_block_writes(programs: Path) -> None:
    may_leave = programs / "may_leave"
    for script in ("exit 1", f"while [ ! -e {may_leave} ]; do sleep 0.05; done; exit 1"):
        install(programs, "aplay", script)
        player = find_player()
        assert isinstance(player, StreamingPlayer)
        writing = threading.Thread(target=write_often, args=(player,), daemon=True)
        writing.start()
        writing.join(PATIENCE_S)
        assert not writing.is_alive(), "it waits for the player"
        may_leave.touch()
        player.close()


def test_failure_of_a_player_is_reported_once(programs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = "could not play the speech (status 3): --out FILE writes the speech to a file"
    for name in ("aplay", "afplay"):
        install(programs, name, "exit 3")
        player = find_player()
        assert player is not None
        player.write(TONE, 16_000)
        player.close()
        assert capsys.readouterr().err.endswith(f"{name} {about}\n")
        (programs / name).unlink()


def test_file_player_receives_the_whole_file(programs: Path, tmp_path: Path) -> None:
    install(programs, "afplay", f'cp "$1" {tmp_path}/played.wav')
    player = find_player()
    assert isinstance(player, FilePlayer)
    player.write(TONE, 16_000)
    player.close()
    assert len(soundfile.read(tmp_path / "played.wav")[0]) == 16_000


def test_missing_player_is_none(programs: Path) -> None:
    assert find_player() is None
