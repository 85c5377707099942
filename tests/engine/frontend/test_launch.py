"""What vLLM is started with, and what is refused before anything is started."""

from pathlib import Path

import pytest

from stretto.config import EngineConfig
from stretto.engine.frontend.launch import vllm_config
from stretto.families.tiny.family import TINY
from tests.engine.harness import DEFAULTS
from tests.random_checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"), TINY, "tiny")


@pytest.mark.parametrize(
    ("name", "value"),
    [("pipeline_parallel_size", 2), ("enable_lora", True), ("decode_context_parallel_size", 2), ("nnodes", 2)],
)
def test_what_does_not_work_is_refused_by_name_before_a_process_starts(folder: Path, name: str, value: object) -> None:
    extra = {"tensor_parallel_size": 4} if name in ("decode_context_parallel_size", "nnodes") else {}
    with pytest.raises(ValueError, match=f"works without .*{name.removeprefix('enable_')}"):
        vllm_config(EngineConfig(folder, {**DEFAULTS, **extra, name: value}))


@pytest.mark.parametrize(("name", "value"), [("tensor_parallel_size", 2), ("data_parallel_size", 2)])
def test_what_works_is_not_refused(folder: Path, name: str, value: object) -> None:
    built = vllm_config(EngineConfig(folder, {**DEFAULTS, name: value}))
    assert getattr(built.parallel_config, name) == value
