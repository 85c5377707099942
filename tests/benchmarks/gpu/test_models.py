"""The engines of the jobs get the memory that `make-repository --gpu` would leave to them."""

from pathlib import Path

import pytest

from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.models import MODELS, engine_config, write_config
from stretto.convert.make_repository import decoder_config
from stretto.engine.host import memory_share
from stretto.machine.gpus import MIB
from stretto.machine.sizing import DECODER_LIBRARY_BYTES, SERVER_BYTES

GPU_BYTES = 80 << 30


@pytest.mark.nightly
@pytest.mark.slow
def test_engine_gets_the_memory_that_its_decoder_leaves(tmp_path: Path) -> None:
    setup, model = Setup("cuda", tmp_path), MODELS["qwen3_tts"]
    config = engine_config(write_config(tmp_path, model, setup), setup, model, (1, 16))
    assert config.reserved_mb is not None
    states = decoder_config(model.read_family(setup), config.engine_args).max_utterances * 5_000_000
    assert (
        config.reserved_mb * MIB > SERVER_BYTES + DECODER_LIBRARY_BYTES + 680_000_000 + states
    )  # and the codec's weights
    assert not config.engine_args.keys() & {"gpu_memory_utilization", "kv_cache_memory_bytes"}
    share = memory_share(config, lambda: GPU_BYTES)["gpu_memory_utilization"]
    assert share * GPU_BYTES == pytest.approx(GPU_BYTES - config.reserved_mb * MIB)
