"""vLLM's start arguments, and configurations that are refused before the engine starts."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
from vllm.model_executor.models import registry

from stretto.config import EngineConfig
from stretto.engine import host
from stretto.engine.host import captured_rows, vllm_config
from stretto.engine.worker.model_state import captured_steps
from stretto.errors import CheckpointError
from stretto.families.tiny.family import TINY
from tests.engine.harness import DEFAULTS
from tests.random_checkpoints import write_checkpoint, write_modules
from tests.speech_families import EIGHT_STREAMS, LATENTS, MODULE_STEPS, MODULES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), TINY, "tiny")


@pytest.mark.parametrize(
    ("name", "value"),
    [("pipeline_parallel_size", 2), ("enable_lora", True), ("decode_context_parallel_size", 2), ("nnodes", 2)],
)
def test_unsupported_engine_arguments_are_refused_before_startup(folder: Path, name: str, value: object) -> None:
    extra = {"tensor_parallel_size": 4} if name in ("decode_context_parallel_size", "nnodes") else {}
    with pytest.raises(ValueError, match=f"does not support .*{name.removeprefix('enable_')}"):
        vllm_config(EngineConfig(folder, {**DEFAULTS, **extra, name: value}))


@pytest.mark.parametrize(("name", "value"), [("tensor_parallel_size", 2), ("data_parallel_size", 2)])
def test_supported_engine_arguments_are_accepted(folder: Path, name: str, value: object) -> None:
    built = vllm_config(EngineConfig(folder, {**DEFAULTS, name: value}))
    assert getattr(built.parallel_config, name) == value


@pytest.mark.parametrize(
    ("name", "value", "expected"), [("head_dim", 42, "one of 32, .*, 512"), ("hidden_size", 44, "a multiple of 8")]
)
def test_sizes_that_the_cpu_kernels_do_not_read_are_refused_before_startup(
    folder: Path, tmp_path: Path, name: str, value: int, expected: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "checkpoint"))
    path = copy / "config.json"
    record = json.loads(path.read_text())
    record[name] = value
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=rf"config\.json: {name}: expected {expected} on a CPU, got {value}"):
        vllm_config(EngineConfig(copy, dict(DEFAULTS)))


def test_model_class_is_inspected_without_another_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's process would import everything again, which takes 8 s at the first start of a model."""
    name = vllm_config(EngineConfig(folder, dict(DEFAULTS))).model_config.architecture
    model = registry.ModelRegistry.models[name]
    monkeypatch.setattr(registry, "_SUBPROCESS_COMMAND", ["false"])
    monkeypatch.setattr(type(model), "_load_modelinfo_from_cache", lambda self, digest: None)
    assert model.inspect_model_cls().is_text_generation_model


def test_weights_are_loaded_without_a_progress_bar(folder: Path) -> None:
    assert vllm_config(EngineConfig(folder, dict(DEFAULTS))).load_config.use_tqdm_on_load is False


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_num_seqs": 16}, {"max_cudagraph_capture_size": 16 * MODULE_STEPS.window}),
        ({"max_num_seqs": 200}, {"max_cudagraph_capture_size": 512}),
        ({"max_num_seqs": 16, "cudagraph_capture_sizes": [1, 2]}, {}),
        ({"max_num_seqs": 16, "compilation_config": {"max_cudagraph_capture_size": 8}}, {}),
        (
            {"max_num_seqs": 16, "compilation_config": 3},
            {"max_cudagraph_capture_size": 16 * MODULE_STEPS.window},
        ),
        ({}, {}),
    ],
)
def test_graph_capture_size_covers_the_module_rows(arguments: dict, expected: dict, tmp_path: Path) -> None:
    checkpoint = write_modules(tmp_path, MODULES, "modules")
    assert captured_rows(EngineConfig(checkpoint, arguments)) == expected


def test_latents_on_a_gpu_default_to_batch_invariant_products(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def ask() -> None:
        raise Asked

    monkeypatch.setattr(host, "require_batch_invariance", ask)
    monkeypatch.setattr(host, "is_cpu_build", lambda: False)
    latents = write_checkpoint(tmp_path / "latents", LATENTS, "latents", layers=1)
    codes = write_checkpoint(tmp_path / "codes", EIGHT_STREAMS, "eight_streams", layers=1)
    for checkpoint, choice, is_asked in ((latents, None, True), (latents, False, False), (codes, None, False)):
        with pytest.raises(Asked) if is_asked else nullcontext():
            vllm_config(EngineConfig(checkpoint, DEFAULTS, batch_invariant=choice))


def test_latents_require_float32(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, LATENTS, "latents", layers=1)
    with pytest.raises(ValueError, match="dtype: expected 'float32', because latents are fed back in float32, got 'bf"):
        vllm_config(EngineConfig(checkpoint, {**DEFAULTS, "dtype": "bfloat16"}))


def test_latent_steps_must_suit_the_family(tmp_path: Path) -> None:
    latents = write_checkpoint(tmp_path / "latents", LATENTS, "latents", layers=1)
    codes = write_checkpoint(tmp_path / "codes", EIGHT_STREAMS, "eight_streams", layers=1)
    built = vllm_config(EngineConfig(latents, DEFAULTS, latent_steps=[1, 4]))
    assert captured_steps(LATENTS, built) == [1, 2, 4]  # the default is 2
    with pytest.raises(ValueError, match=r"latent_steps: expected numbers in \[1, 4\], got 5"):
        vllm_config(EngineConfig(latents, DEFAULTS, latent_steps=[5]))
    with pytest.raises(ValueError, match=r"latent_steps: expected none \(frames are codes\), got 1"):
        vllm_config(EngineConfig(codes, DEFAULTS, latent_steps=[1]))


def test_late_submission_requires_asynchronous_scheduling(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path, EIGHT_STREAMS, "eight_streams", layers=1)
    built = vllm_config(EngineConfig(checkpoint, {**DEFAULTS, "async_scheduling": True}, submit_early_ms=3))
    assert built.additional_config["submit_early_ms"] == 3
    with pytest.raises(ValueError, match="submit_early_ms: expected null without async_scheduling, got 3"):
        vllm_config(EngineConfig(checkpoint, DEFAULTS, submit_early_ms=3))


def test_latent_buffers_are_limited_to_an_eighth_of_the_kv_cache(tmp_path: Path) -> None:
    """A latent of eight numbers takes 32 bytes for each slot and position; one position is spare."""
    checkpoint = write_checkpoint(tmp_path, LATENTS, "latents", layers=1)
    arguments = {**DEFAULTS, "max_num_seqs": 4, "max_model_len": 256}
    enough = 8 * 257 * 4 * 32
    built = vllm_config(EngineConfig(checkpoint, {**arguments, "kv_cache_memory_bytes": enough}))
    assert built.model_config.max_model_len == 256
    with pytest.raises(ValueError, match=r"max_model_len: expected at most 255 with max_num_seqs 4, .*, got 256"):
        vllm_config(EngineConfig(checkpoint, {**arguments, "kv_cache_memory_bytes": enough - 1}))


def test_other_families_use_vllm_graph_sizes(folder: Path) -> None:
    assert captured_rows(EngineConfig(folder, {"max_num_seqs": 16})) == {}
