"""Replies of slow references that a bundle brings: computed once, recalled for the same checkpoint and prompts only."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.gpu import parity, stored_replies
from benchmarks.gpu.jobs import JOBS, Setup
from benchmarks.gpu.stored_replies import FOLDER, recall
from stretto.convert import make_repository
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


def test_every_parity_job_with_a_reference_finds_its_replies_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The references are replaced, because they are slow; checkpoints and prompts are those of the jobs."""

    class Quick:
        def __init__(self, *arguments: object) -> None:
            pass

        def reply(self, prompt: object) -> tuple[list[list[int]], float]:
            return [[1]], 1.0

    for module, name in (
        ("stretto.testing.reference", "ReferenceModel"),
        ("tests.reference.module_lm", "ModuleReference"),
    ):
        monkeypatch.setattr(f"{module}.{name}", Quick)
    published = "plugins.higgs_audio.tests.published_higgs_audio.convert"
    monkeypatch.setattr(published, lambda folder, model: (checkpoint_in(folder / "higgs"), TINY, SimpleNamespace()))
    monkeypatch.setattr(
        "plugins.higgs_audio.tests.engine.test_higgs_audio.make_prompt", lambda *arguments: make_prompts(TINY, 1)["r0"]
    )
    monkeypatch.setattr("benchmarks.gpu.parity.recall", lambda *arguments: seen.append(arguments[0]))
    monkeypatch.setenv(FOLDER, "")  # `store_all` sets it
    seen = list[str]()
    names = list(parity.store_all(tmp_path, is_small=True))
    assert names == seen == ["tiny", "eight_streams", "modules", "csm", "tiny"]
    run = {job.run.partition(":")[2] for name, job in JOBS.items() if name.startswith("parity") or name == "waits"}
    assert run == {"run", "run_frames", "run_half", "run_waits", "run_modules", "run_higgs_audio", "run_latents"}


def test_parity_engines_have_the_arguments_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They differ from those that `make-repository --gpu` writes in memory, and in what a mode is about."""
    checkpoint = write_checkpoint(tmp_path, TINY, "tiny")
    written = make_repository.engine_arguments(parity.config_at(checkpoint), TINY, is_on_gpu=True)
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
