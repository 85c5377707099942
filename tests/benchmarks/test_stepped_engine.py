"""An unreferenced engine frees its memory, although vLLM has frozen its objects."""

import weakref
from pathlib import Path

import pytest

from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment
from stretto.testing.checkpoints import write_checkpoint
from tests.speech_families import EIGHT_STREAMS

pytestmark = [pytest.mark.engine, pytest.mark.nightly]
prepare_environment()

from benchmarks.engines import SteppedEngine, engine_args  # noqa: E402
from stretto.engine.host import vllm_config  # noqa: E402


def test_kv_cache_is_freed_with_its_engine_only(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, EIGHT_STREAMS, "eight_streams", 128, 2)
    args = engine_args(EIGHT_STREAMS.max_model_len, 2) | {"kv_cache_memory_bytes": 8 << 20}
    engines = [SteppedEngine(vllm_config(EngineConfig(tmp_path, args))) for _ in range(2)]
    caches = [weakref.ref(engine.runner.kv_caches[0]) for engine in engines]
    engines.pop()
    assert [cache() is None for cache in caches] == [False, True]
