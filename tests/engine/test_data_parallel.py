"""With vLLM's data parallelism, each request goes to one of two engines."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stretto.config import EngineConfig
from stretto.engine.llm import SpeechLLM
from stretto.errors import InvalidRequest
from stretto.families.tiny.family import TINY
from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt
from tests.engine.adapters import write_adapter
from tests.engine.forking import forked_processes
from tests.engine.harness import DEFAULTS, Engine
from tests.random_checkpoints import write_checkpoint

pytestmark = pytest.mark.engine


def spoken(rows: list[list[int]]) -> np.ndarray:
    """Return the codes [7, T] of rows, with delays removed."""
    audio = [index for index, row in enumerate(rows) if row[0] in TINY.layout.audio[0]]
    layout = TINY.layout
    return np.array(
        [[rows[i + layout.delays[s]][s] - layout.audio[s].start for i in audio] for s in layout.codebook_streams]
    )


def too_large() -> Prompt:
    """Return a guided request that fits two engines together but neither of them."""
    prompt = make_prompt(TINY, 0, "tts", guidance_scale=3.0)
    sampling = replace(prompt.sampling, audio=replace(prompt.sampling.audio, max_rows=288))
    return replace(prompt, sampling=sampling)


def ask(index: int) -> Prompt:
    return replace(make_prompt(TINY, index, "tts"), adapter="narrator" if index > 5 else None)


async def collect(llm: SpeechLLM, index: int) -> np.ndarray:
    return np.concatenate([chunk.codes async for chunk in llm.generate(ask(index)) if chunk.codes is not None], 1)


LIMITS = {"max_model_len": 288, "num_gpu_blocks_override": 17}  # of each engine; a CFG pair of 288 rows takes 18 blocks


@pytest.mark.nightly
async def test_two_engines_reply_like_one(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "checkpoint", TINY, "tiny")
    adapters = {"narrator": write_adapter(tmp_path / "narrator", folder, 0)}
    one = Engine(folder, adapters=adapters, **LIMITS)
    answers = one.run({f"r{index}": ask(index) for index in range(8)})
    one.shutdown()
    arguments = {**DEFAULTS, **LIMITS, "data_parallel_size": 2}
    with forked_processes():
        llm = await SpeechLLM.start(EngineConfig(folder, arguments, adapters=adapters))
    try:
        replies = await asyncio.gather(*(collect(llm, index) for index in range(8)))
        with pytest.raises(InvalidRequest, match=r"at most 16 KV blocks of 32 rows, got 18 blocks \(288 rows"):
            await anext(llm.generate(too_large()))
        with pytest.raises(InvalidRequest, match=r"options.adapter: expected one of narrator, got 'singer'"):
            await anext(llm.generate(replace(ask(0), adapter="singer")))
    finally:
        llm.shutdown()
    for index, codes in enumerate(replies):
        assert np.array_equal(codes, spoken(answers[f"r{index}"].rows)), index
    assert llm.stats()["unguided_total"] == 0
