"""Stored encodings survive a restart, need the recording and the same encoder, and are bounded."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.family.encoded_voices import (
    NONCE_BYTES,
    SUFFIX,
    UNUSED_S,
    CachedEncoder,
    EncodedFiles,
    files_of_encoder,
    stored_in,
)
from stretto.launcher.config import launch_config, parser
from stretto.launcher.server import encodings_environment
from stretto.triton_io.stub import ENCODINGS

PCM = np.sin(np.arange(2_400, dtype=np.float32))
OTHER = PCM * np.float32(0.5)


class Counting:
    """Encoder that counts its calls."""

    def __init__(self, dtype: Any = np.float32) -> None:
        self.calls, self._dtype = 0, dtype

    def __call__(self, pcm: np.ndarray) -> np.ndarray:
        self.calls += 1
        return (pcm[:6] * 100).astype(self._dtype).reshape(2, 3)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    (folder / "codec").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "codec" / "model.safetensors").write_bytes(b"weights")
    return folder


def opened(folder: Path, checkpoint: Path, *encoders: Any, device: str = "cpu") -> list[CachedEncoder]:
    """Open encoders as a preprocessor does when it starts."""
    with stored_in(EncodedFiles.of_checkpoint(folder, checkpoint, device)):
        return [CachedEncoder(encode) for encode in encoders]


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.int32])
def test_reused_voice_is_not_encoded_again_after_a_restart(tmp_path: Path, checkpoint: Path, dtype: Any) -> None:
    folder, encode = tmp_path / "encodings", Counting(dtype)
    (encoder,) = opened(folder, checkpoint, encode)
    first = encoder.encode(PCM)
    assert files_in(folder) == []  # used once: a question of a conversation is not stored
    encoder.encode(PCM)
    encoder.encode(PCM)
    (path,) = files_in(folder)
    assert (folder.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    (again,) = opened(folder, checkpoint, encode)
    found = again.encode(PCM.copy())
    assert encode.calls == 1
    assert (found.dtype, found.shape) == (dtype, (2, 3))
    np.testing.assert_array_equal(found, first)
    again.encode(OTHER)
    assert encode.calls == 2


def test_cached_encodings_are_specific_to_the_encoder(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "encodings"

    def calls(device: str = "cpu") -> list[int]:
        """Return how often each of two encoders is called for the same recording."""
        counting = [Counting(), Counting(np.int64)]
        encoders = opened(folder, checkpoint, *counting, device=device)
        for _ in range(2):
            kinds = [encoder.encode(PCM).dtype for encoder in encoders]
        assert kinds == [np.float32, np.int64]
        return [each.calls for each in counting]

    assert calls() == [1, 1]
    assert calls() == [0, 0]
    assert calls("cuda:0") == [1, 1]
    (checkpoint / "codec" / "model.safetensors").write_bytes(b"others!!")
    assert calls() == [1, 1]
    monkeypatch.setattr("stretto.family.encoded_voices.version", lambda name: "99")
    assert calls() == [1, 1]


def test_encoding_file_reveals_no_content(tmp_path: Path, checkpoint: Path) -> None:
    folder = tmp_path / "encodings"
    for pcm in (PCM, OTHER):
        (encoder,) = opened(folder, checkpoint, lambda _: np.zeros(4_000, np.uint8))
        encoder.encode(pcm)
        encoder.encode(pcm)
    one, other = (path.read_bytes()[NONCE_BYTES:] for path in files_in(folder))
    for stored in (one, other):
        assert b"NUMPY" not in stored
        counts = np.bincount(np.frombuffer(stored, np.uint8), minlength=256)
        assert counts.max() < 50  # zeros are not seen: about 16 of each byte
    assert sum(a == b for a, b in zip(one, other, strict=True)) < 60  # another recording, another key


@pytest.mark.parametrize("place", [0, NONCE_BYTES, -1])
def test_damaged_encoding_file_is_replaced(tmp_path: Path, checkpoint: Path, place: int) -> None:
    folder, encode = tmp_path / "encodings", Counting()
    (encoder,) = opened(folder, checkpoint, encode)
    expected = encoder.encode(PCM)
    encoder.encode(PCM)
    (path,) = files_in(folder)
    stored = bytearray(path.read_bytes())
    stored[place] ^= 1
    path.write_bytes(stored)
    (again,) = opened(folder, checkpoint, encode)
    np.testing.assert_array_equal(again.encode(PCM), expected)
    assert (encode.calls, files_in(folder)) == (2, [])
    path.write_bytes(b"")
    (third,) = opened(folder, checkpoint, encode)
    np.testing.assert_array_equal(third.encode(PCM), expected)


def test_encoded_files_are_limited_in_size_and_age(tmp_path: Path) -> None:
    now = [1e9]
    files = EncodedFiles(tmp_path, b"e" * 64, max_bytes=3_000, clock=lambda: now[0])
    array = np.zeros(872, np.uint8)  # 1032 bytes each: two fit
    for index in range(3):
        digest = bytes([index]) * 64
        files.write(digest, array)
        path = files._path(digest)
        if path.exists():
            os.utime(path, (1e9 + index, 1e9 + index))
    os.utime(files._path(bytes([1]) * 64), (1e9, 1e9))
    files.write(bytes([3]) * 64, array)
    kept = [files.read(bytes([index]) * 64) is not None for index in range(4)]
    assert sum(path.stat().st_size for path in files_in(tmp_path)) <= 3_000
    assert kept == [False, False, True, True]
    now[0] = files_in(tmp_path)[0].stat().st_mtime + UNUSED_S + 10
    (tmp_path / "abandoned.unfinished").touch()
    os.utime(tmp_path / "abandoned.unfinished", (1e9, 1e9))
    (tmp_path / "of somebody else").touch()
    files.remove_old()
    assert [path.name for path in tmp_path.iterdir()] == ["of somebody else"]


def test_encoding_survives_full_disk_or_missing_folder(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, encode = tmp_path / "encodings", Counting()
    (encoder,) = opened(folder, checkpoint, encode)
    encoder.encode(PCM)
    shutil.rmtree(folder)
    assert encoder.encode(PCM).shape == (2, 3)
    assert "cannot store the encoding of a voice: No such file or directory" in caplog.text
    folder.write_text("not a folder")
    assert EncodedFiles.of_checkpoint(folder, checkpoint, "cpu") is None
    (plain,) = opened(folder, checkpoint, encode)
    assert plain.encode(PCM).shape == (2, 3)
    folder.unlink()
    (full,) = opened(folder, checkpoint, encode)
    full.encode(PCM)

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fdopen", no_space)
    full.encode(PCM)
    assert "No space left" in caplog.text
    assert [*folder.iterdir()] == []


def test_evicted_recordings_do_not_count_as_used(tmp_path: Path, checkpoint: Path) -> None:
    with stored_in(EncodedFiles.of_checkpoint(tmp_path / "encodings", checkpoint, "cpu")):
        encoder = CachedEncoder(Counting(), max_bytes=600)  # one entry
    encoder.encode(PCM)
    encoder.encode(OTHER)
    assert len(encoder._unwritten) == 1
    encoder.encode(PCM)
    assert files_in(tmp_path / "encodings") == []


def test_encoders_outside_a_preprocessor_store_nothing() -> None:
    assert files_of_encoder() is None
    with stored_in(None):
        assert files_of_encoder() is None


def test_only_a_server_with_a_gateway_stores_encodings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENCODINGS, raising=False)
    monkeypatch.setattr("stretto.launcher.server.state_folder", lambda: tmp_path)

    def config(*words: str) -> Any:
        return launch_config(*parser().parse_known_args([*words, "--log-file", str(tmp_path / "log")]))

    assert encodings_environment(config()) == {}
    assert encodings_environment(config("--gateway")) == {ENCODINGS: str(tmp_path / "encodings")}
    monkeypatch.setenv(ENCODINGS, "")
    assert encodings_environment(config("--gateway")) == {}
