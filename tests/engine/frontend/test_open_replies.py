"""The one door, and a text that is written while the reply is on its way, with the engine in its own process."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from stretto.config import EngineConfig
from stretto.engine.frontend.llm import SpeechLLM
from stretto.errors import InvalidRequest
from stretto.records.chunk import LMChunk
from stretto.records.prompt import Prompt
from tests.engine.forking import forked_processes
from tests.engine.harness import DEFAULTS
from tests.engine.prompts import make_prompt
from tests.random_checkpoints import write_checkpoint
from tests.small_vocabularies import TRACKED_CSM

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
NAME = "tests.small_vocabularies:TRACKED_CSM"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SpeechLLM]:
    folder: Path = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), TRACKED_CSM, NAME, hidden=64, layers=2)
    with forked_processes():
        running = await SpeechLLM.start(EngineConfig(folder, {**DEFAULTS, "max_num_seqs": 4}))
    yield running
    running.shutdown()


def prompt(**audio: int) -> Prompt:
    made = make_prompt(TRACKED_CSM, 0, "tts", guidance_scale=1.0)
    sampling = replace(made.sampling, audio=replace(made.sampling.audio, min_rows=0, max_rows=30, **audio))
    return replace(made, sampling=sampling)


async def collect(llm: SpeechLLM, given: Prompt, request_id: str) -> list[LMChunk]:
    return [chunk async for chunk in llm.generate(given, request_id)]


def codes_of(chunks: list[LMChunk]) -> np.ndarray:
    return np.concatenate([chunk.codes for chunk in chunks if chunk.codes is not None], 1)


async def test_a_text_that_is_written_makes_the_reply_of_the_whole(llm: SpeechLLM) -> None:
    whole = prompt()
    audio = replace(whole.sampling.audio, min_rows=len(whole.track))
    expected = await collect(llm, replace(whole, sampling=replace(whole.sampling, audio=audio)), "whole")
    speaking = asyncio.create_task(collect(llm, replace(whole, track=whole.track[:2], is_open=True), "open"))
    await asyncio.sleep(0)
    while llm.stats()["replies_without_words"] < 1:
        await asyncio.sleep(0.01)
    assert not llm.has_work(), "it waits for words and not for the engine"
    await llm.write("open", whole.track[2:5])
    await llm.write("open", [])
    await llm.write("open", whole.track[5:-1], is_last=True)
    chunks = await speaking
    assert codes_of(chunks).tolist() == codes_of(expected).tolist()
    assert chunks[-1].chunk.report.held_s > 0
    assert expected[-1].chunk.report.held_s == 0
    with pytest.raises(InvalidRequest, match="request_id: expected a reply whose text is open, got open"):
        await llm.write("open", [20])
