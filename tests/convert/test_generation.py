"""A release's generation_config.json sets the checkpoint's defaults, which request options override."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.releases import random_qwen3_tts, random_vita
from stretto.convert.command import main
from stretto.errors import CheckpointError
from stretto.family.base import Family
from stretto.family.plugin import family_at, read_family
from stretto.preprocessing.options import read_options
from stretto.records.sampling import CodeSampling, SamplingConfig
from tests import published_csm, published_qwen3_tts, vita_release
from tests.refused_conversion import refused

FILE = "generation_config.json"


def csm(folder: Path) -> list[str]:
    return published_csm.write_release(folder, published_csm.make_model()).command


def qwen3_tts(folder: Path) -> list[str]:
    return published_qwen3_tts.command(random_qwen3_tts.write_release(folder), folder / "out")[:-2]


def vita_audio(folder: Path) -> list[str]:
    return vita_release.command(random_vita.write_release(folder), folder / "out")[:-2]


Write = Callable[[Path], list[str]]


def change(folder: Path, record: dict[str, Any]) -> None:
    path = folder / FILE
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | record))


def converted(write: Write, record: dict[str, Any], tmp_path: Path) -> Family:
    command = write(tmp_path / "release")
    change(tmp_path / "release", record)
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    return family_at(tmp_path / "out")


def drawn(sampling: CodeSampling) -> tuple[float, int, float]:
    return sampling.temperature, sampling.top_k, sampling.top_p


CHANGED = {"do_sample": True, "temperature": 0.65, "top_k": 33, "top_p": 0.77, "max_new_tokens": 5}


@pytest.mark.parametrize("write", [csm, qwen3_tts, vita_audio])
def test_fine_tunes_keep_their_own_defaults(write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family = converted(write, CHANGED, tmp_path)
    said = capsys.readouterr().out
    assert f"defaults from {FILE}: " in said
    assert all(f"{name} {CHANGED[name]}" in said for name in ("temperature", "top_k", "top_p"))
    assert "max_new_tokens" not in said
    task = family.task("tts")
    segment = task.sampling.text if write is vita_audio else task.sampling.audio
    assert drawn(segment) == (0.65, 33, 0.77)
    assert segment.max_rows > 5
    options = '{"top_k": 7}'
    given = read_options(options, family, task, family.frame_rate).sampling
    assert drawn(given.text if write is vita_audio else given.audio) == (0.65, 7, 0.77)


def test_greedy_task_stays_greedy_after_conversion(tmp_path: Path) -> None:
    """VITA-Audio's scripts sample only when they read text aloud."""
    family = converted(vita_audio, CHANGED | {"repetition_penalty": 1.2}, tmp_path)
    assert drawn(family.task("asr").sampling.text) == (0.0, 33, 0.77)
    assert {task.sampling.repetition_penalty for task in family.tasks} == {1.2}


DEPTH: dict[str, tuple[Write, dict[str, Any], tuple[float, int, float]]] = {
    "csm": (csm, {"depth_decoder_temperature": 0.4, "depth_decoder_top_k": 5, "top_p": 0.9}, (0.4, 5, 0.9)),
    "csm greedy": (csm, {"depth_decoder_do_sample": False, "depth_decoder_temperature": 0.4}, (0.0, 50, 1.0)),
    "qwen3_tts": (qwen3_tts, {"subtalker_temperature": 0.4, "subtalker_top_p": 0.6}, (0.4, 50, 0.6)),
    "qwen3_tts greedy": (qwen3_tts, {"subtalker_dosample": False}, (0.0, 50, 1.0)),
}


@pytest.mark.parametrize("case", DEPTH)
def test_depth_transformer_has_separate_sampling_defaults(case: str, tmp_path: Path) -> None:
    write, record, expected = DEPTH[case]
    sampling = converted(write, record, tmp_path).task("tts").sampling
    assert drawn(sampling.codes) == pytest.approx(expected)


def test_greedy_release_defaults_to_greedy_sampling(tmp_path: Path) -> None:
    sampling = converted(csm, {"do_sample": False, "temperature": 0.6}, tmp_path).task("tts").sampling
    assert sampling.audio.temperature == 0.0


def test_release_without_generation_config_uses_family_defaults(tmp_path: Path) -> None:
    command = csm(tmp_path / "release")
    (tmp_path / "release" / FILE).unlink(missing_ok=True)
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "speech_sampling" not in json.loads((tmp_path / "out" / "config.json").read_text())
    published = read_family({"speech_family": "csm"}).task("tts").sampling
    assert family_at(tmp_path / "out").task("tts").sampling == published


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"temperature": "hot"}, "temperature: expected a number in [0.0, 10.0], got 'hot'"),
        ({"temperature": -1}, "temperature: expected a number in [0.0, 10.0], got -1"),
        ({"temperature": float("nan")}, "temperature: expected a number in [0.0, 10.0], got nan"),
        ({"top_k": 2.5}, "top_k: expected an integer in [0, 1048576], got 2.5"),
        ({"top_p": [1]}, "top_p: expected a number in [1e-06, 1.0], got [1]"),
        ({"do_sample": "yes"}, "do_sample: expected true or false, got 'yes'"),
        ({"depth_decoder_top_k": -3}, "depth_decoder_top_k: expected an integer in [0, 1048576], got -3"),
    ],
)
def test_invalid_generation_default_is_reported(
    record: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = csm(tmp_path / "release")
    change(tmp_path / "release", record)
    capsys.readouterr()
    said = refused([*command, "--out", str(tmp_path / "out")], tmp_path / "out", capsys)
    assert f"release/{FILE}: {message}" in said


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (3, "speech_sampling: expected an object, got 3"),
        ({"video": {}}, "speech_sampling: unknown 'video'"),
        ({"audio": {"max_rows": 3}}, "speech_sampling.audio: expected temperature, top_k, top_p"),
        ({"audio": 3}, "speech_sampling.audio: expected temperature, top_k, top_p, got 3"),
        ({"audio": {"top_p": 7}}, r"speech_sampling.audio.top_p: expected a number in \[1e-06, 1.0\], got 7"),
        ({"ras_window": -1}, "speech_sampling.audio.ras_window: expected an integer"),
    ],
)
def test_invalid_checkpoint_sampling_defaults_are_refused(record: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"config.json: {message}"):
        read_family({"speech_family": "csm", "speech_sampling": record})


def test_checkpoint_sampling_defaults_apply_to_every_task() -> None:
    family = read_family({"speech_family": "csm", "speech_sampling": {"audio": {"temperature": 0.3}}})
    assert [task.sampling.audio.temperature for task in family.tasks] == [0.3, 0.3]
    assert isinstance(family.task("tts").sampling, SamplingConfig)
