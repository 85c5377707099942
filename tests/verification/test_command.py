"""`stretto verify`: tags and marks of files, with a detector of random weights; files that cannot be read."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from stretto.errors import CheckpointError
from stretto.verification import command
from stretto.verification.command import (
    MAX_FILE_BYTES,
    RATE,
    described,
    main,
    marked_s,
    open_detector,
    verdict,
    windows,
)
from stretto.verification.detector import Detector, median_step, shapes, spectrum
from stretto_gateway.encoding import SYNTHETIC, TAGGED, make_encoder

PCM = np.random.default_rng(0).integers(-8000, 8000, 24_000).astype(np.int16)


def encoded(name: str, tags: dict[str, str]) -> bytes:
    encoder = make_encoder(name, 24_000, tags)
    return encoder.encode(PCM) + encoder.close()


@pytest.fixture
def detector(monkeypatch: pytest.MonkeyPatch) -> Detector:
    """Install a detector with random weights."""
    rng = np.random.default_rng(0)
    drawn = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes().items()}
    found = Detector({name: torch.from_numpy(each) for name, each in drawn.items()})
    monkeypatch.setattr(command, "open_detector", lambda: found)
    return found


def test_tags_are_read_and_the_mark_is_not_checked_without_a_detector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stretto.verification.command.find_spec", lambda name: None)
    for name in (*TAGGED, "wav"):
        (tmp_path / name).write_bytes(encoded(name, SYNTHETIC))
    monkeypatch.chdir(tmp_path)
    assert main([*TAGGED, "wav"]) == 0
    told = capsys.readouterr()
    tagged = [f"{name}: tag trainedAlgorithmicMedia; mark not checked" for name in TAGGED]
    assert told.out.splitlines() == [*tagged, "wav: no tag; mark not checked"]
    assert told.err.splitlines() == [
        "stretto verify: the detector is not installed: pip install resemble-perth --no-deps"
    ]


def test_json_has_the_windows_of_a_file_from_standard_input(
    detector: Detector, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = io.BytesIO()
    sound = np.random.default_rng(1).normal(0, 0.1, 4 * RATE + RATE // 2)
    sound[: 3 * RATE] = 0
    soundfile.write(file, sound, RATE, "PCM_16", format="WAV")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.getvalue())))
    assert main(["--json", "-"]) == 0
    record = json.loads(capsys.readouterr().out)
    found = record["mark"]["windows"]
    assert [(each["start_s"], each["end_s"]) for each in found] == [(0, 3), (1, 4), (1.5, 4.5)]
    assert [each["score"] is None for each in found] == [True, False, False], "the first window is silent"
    assert record["metadata"] == {"digital_source_type": None}


@pytest.mark.parametrize(
    ("scores", "said", "seconds"),
    [
        ([None, None], "nothing to judge", 0),
        ([0.1, None, 0.3], "no mark found", 0),
        ([0.1, 0.5, 0.1], "uncertain", 0),
        ([0.1, 0.7, 0.2], "mark found", 3),
        ([0.9, 0.9, 0.1, 0.8], "mark found", 6),
    ],
)
def test_verdict_names_what_the_windows_show(scores: list[float | None], said: str, seconds: float) -> None:
    found = [{"start_s": float(at), "end_s": at + 3.0, "score": score} for at, score in enumerate(scores)]
    assert (verdict(found), marked_s(found)) == (said, seconds)
    record: dict[str, Any] = {"metadata": {"digital_source_type": None}}
    record["mark"] = {"verdict": said, "marked_s": seconds}
    assert described(record) == f"no tag; {said}" + (f" ({seconds} s)" if seconds else "")


def test_silence_short_sounds_and_steady_tones_are_not_judged(detector: Detector) -> None:
    tone, noise = np.sin(0.05 * np.arange(RATE)), np.random.default_rng(2).normal(0, 0.1, RATE)
    for pcm in (np.zeros(RATE), tone, noise[:2000]):
        assert detector.score(pcm.astype(np.float32)) is None
    assert detector.score(noise.astype(np.float32)) is not None
    assert [median_step(spectrum(torch.from_numpy(each))[:128]) > 1 for each in (tone, noise)] == [False, True]
    assert [each["score"] for each in windows(np.zeros(0, np.float32), detector)] == [None]


def test_unreadable_files_are_named_and_the_others_are_verified(
    detector: Detector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "MAX_S", 2.0)
    Path("text").write_text("not audio")
    Path("good").write_bytes(encoded("flac", {}))
    soundfile.write("long", np.zeros(3 * RATE), RATE, "PCM_16", format="WAV")
    with Path("large").open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert main(["text", "long", "large", "none", "good"]) == 2
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert lines[0].startswith("stretto verify: text: file: expected a readable wav, ")
    assert lines[1].startswith("stretto verify: long: file: expected at most 2 s")
    assert lines[2:] == [
        f"stretto verify: large: file: expected at most {MAX_FILE_BYTES} bytes, got more",
        "stretto verify: none: No such file or directory",
    ]
    assert told.out.startswith("good: no tag; ")


def test_weights_of_another_network_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "perth/perth_net/pretrained/implicit"
    folder.mkdir(parents=True)
    (tmp_path / "perth/__init__.py").write_text("raise ImportError\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = folder / "perth_net_250000.pth.tar"
    with pytest.raises(CheckpointError, match="No such file"):
        open_detector()
    torch.save({"model": {}}, path)
    with pytest.raises(CheckpointError, match=r"expected the weights of perth's network$"):
        open_detector()
    weights = {name: torch.zeros(shape) for name, shape in shapes().items()}
    torch.save({"model": weights | {"decoder.slow_layers.0.conv.bias": torch.zeros(1)}}, path)
    with pytest.raises(CheckpointError, match=r"slow_layers.0.conv.bias: expected shape \(256,\), got \(1,\)$"):
        open_detector()
    torch.save({"model": weights}, path)
    assert open_detector().score(np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)) == 0
