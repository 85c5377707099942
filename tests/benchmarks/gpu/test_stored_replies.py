"""Replies of slow references that a bundle brings: computed once, recalled for the same checkpoint and prompts only."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu import parity, stored_replies
from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.stored_replies import FOLDER, recall
from stretto.convert.profiles import engine_arguments
from stretto.families.tiny.family import TINY
from stretto.testing.checkpoints import make_prompts, write_checkpoint

REPLIES = {"r0": ([[1, 2], [3, 4]], 0.5)}


def checkpoint_in(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_stored_replies_belong_to_a_checkpoint_and_its_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint, prompts = checkpoint_in(tmp_path / "checkpoint"), make_prompts(TINY, 2)
    computed = list[int]()

    def compute() -> stored_replies.Replies:
        computed.append(1)
        return REPLIES

    monkeypatch.delenv(FOLDER, raising=False)
    assert not recall("tiny", checkpoint, prompts, compute).is_stored
    monkeypatch.setenv(FOLDER, str(tmp_path / "replies"))
    assert not recall("tiny", checkpoint, prompts, compute).is_stored
    recalled = recall("tiny", checkpoint, prompts, compute)
    assert recalled.is_stored
    assert recalled.replies == REPLIES
    assert len(computed) == 2
    first, *_ = prompts
    changed = replace(prompts[first], sampling=replace(prompts[first].sampling, seed=77))
    assert not recall("tiny", checkpoint, {**prompts, first: changed}, compute).is_stored
    (checkpoint / "model.safetensors").write_bytes(b"other weights")
    assert not recall("tiny", checkpoint, prompts, compute).is_stored


def test_parity_engines_have_the_arguments_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ from those that `make-repository --gpu` writes in memory, and in what a mode is about."""
    checkpoint = write_checkpoint(tmp_path, TINY, "tiny")
    written = engine_arguments(parity.config_at(checkpoint), TINY, is_on_gpu=True)
    extra = {"attention_config": {"flash_attn_max_num_splits_for_cuda_graph": 7}, "compilation_config": {"mode": 3}}
    monkeypatch.setattr(parity, "engine_arguments", lambda *arguments, **options: {**written, **extra})
    setup = Setup("cuda", tmp_path)
    eager, captured = (
        parity.half_arguments(setup, checkpoint, TINY, has_graphs=has_graphs) for has_graphs in (False, True)
    )
    changed = {"dtype", "max_model_len", "max_waiting"}
    for name, value in {**written, **extra}.items():
        if name not in changed | {"compilation_config"}:
            assert eager[name] == captured[name] == value, name
    assert captured["compilation_config"] == {"mode": 3, "cudagraph_capture_sizes": parity.EVERY_SIZE}
    case = parity.Case(TINY, checkpoint, {}, stored_replies.Recalled({}, True))
    for mode, changes in parity.MODES.items():
        arguments = parity.mode_arguments(setup, case, mode)
        assert arguments["attention_config"] == extra["attention_config"], mode
        assert {name: arguments[name] for name in changes} == changes, mode
