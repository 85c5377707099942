"""`SpeechLLM` and streamed text, with the engine in its own process."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from stretto.config import EngineConfig
from stretto.engine.llm import SpeechLLM
from stretto.errors import InvalidRequest
from stretto.records.chunk import LMChunk
from stretto.records.flow_address import FlowAddress
from stretto.records.prompt import Prompt, TextPart
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.testing.checkpoints import make_prompt
from stretto.triton_io.speech_service import TextSessions
from tests.engine.forking import forked_processes
from tests.engine.harness import DEFAULTS
from tests.patience import until_async
from tests.random_checkpoints import write_checkpoint
from tests.small_vocabularies import TRACKED_CSM

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
FLOW = FlowAddress("stretto_flow_1_" + "0" * 32, 1, 1)
NAME = "small_tracked_csm"
LENGTH = 128  # rows, of the model


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SpeechLLM]:
    folder: Path = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), TRACKED_CSM, NAME, hidden=64, layers=2)
    with forked_processes():
        running = await SpeechLLM.start(EngineConfig(folder, {**DEFAULTS, "max_num_seqs": 4, "max_model_len": LENGTH}))
    yield running
    running.shutdown()


def prompt(**audio: int) -> Prompt:
    made = make_prompt(TRACKED_CSM, 0, "tts", guidance_scale=1.0)
    sampling = replace(made.sampling, audio=replace(made.sampling.audio, min_rows=0, max_rows=30, **audio))
    return replace(made, sampling=sampling)


async def collect(llm: SpeechLLM, given: Prompt, request_id: str) -> list[LMChunk]:
    return [chunk async for chunk in llm.generate(given, request_id)]


class Letters:
    """Token stream for a checkpoint without a tokenizer: each letter is a token."""

    def after(self, text: str, is_last: bool) -> tuple[list[int], "Letters"]:
        return [16 + ord(letter) % 30 for letter in text], self


async def speak(llm: SpeechLLM, given: Prompt, parts: list[str], begins_first: bool) -> tuple[list[LMChunk], list[str]]:
    """Return the reply to streamed text that arrives in `parts`, and the refused parts.

    Parts are sent after the reply's start or before it. A refused part is sent again without its last letter.
    """
    sessions, refused = TextSessions(llm), list[str]()
    chunks = sessions.speak(given, "live", FLOW, Pacer(ChunkPolicy()))
    name = (await anext(chunks)).chunk.session
    rest = asyncio.ensure_future(collected(chunks)) if begins_first else None
    for number, part in enumerate(parts):
        text = part
        while True:
            try:
                await sessions.write(TextPart(name, number, text, number == len(parts) - 1))
                break
            except InvalidRequest as error:
                refused.append(str(error))
                text = text[:-1]
    return await (rest or collected(chunks)), refused


async def collected(chunks: AsyncIterator[LMChunk]) -> list[LMChunk]:
    return [chunk async for chunk in chunks]


def codes_of(chunks: list[LMChunk]) -> np.ndarray:
    return np.concatenate([chunk.codes for chunk in chunks if chunk.codes is not None], 1)


async def test_streamed_text_reply_equals_the_whole_text_reply(llm: SpeechLLM) -> None:
    whole = prompt()
    audio = replace(whole.sampling.audio, min_rows=len(whole.track))
    expected = await collect(llm, replace(whole, sampling=replace(whole.sampling, audio=audio)), "whole")
    speaking = asyncio.create_task(collect(llm, replace(whole, track=whole.track[:2], is_open=True), "open"))
    await until_async(lambda: speaking.done() or llm.stats()["replies_without_words"], lambda: f"{llm.stats()}")
    assert not speaking.done(), speaking.exception() or speaking.result()
    assert not llm.has_work(), "it waits for words and not for the engine"
    await llm.write("open", whole.track[2:5])
    await llm.write("open", [])
    await llm.write("open", whole.track[5:-1], is_last=True)
    chunks = await speaking
    assert codes_of(chunks).tolist() == codes_of(expected).tolist()
    assert chunks[-1].chunk.report.held_s > 0
    assert expected[-1].chunk.report.held_s == 0
    with pytest.raises(InvalidRequest, match="expected the id of a reply whose streamed text is open, got open"):
        await llm.write("open", [20])


@pytest.mark.parametrize("max_rows", [30, 1000], ids=["of the reply's frames", "of the model's length"])
async def test_texts_are_refused_only_beyond_the_length_limit(
    llm: SpeechLLM, monkeypatch: pytest.MonkeyPatch, max_rows: int
) -> None:
    monkeypatch.setattr(llm, "text_stream", Letters)
    made = prompt()
    audio = replace(made.sampling.audio, max_rows=max_rows)
    given = replace(made, sampling=replace(made.sampling, audio=audio), track=(), is_open=True)
    num_letters = 1 + llm.max_words(given)
    assert num_letters == min(max_rows, LENGTH - 1 - len(made.rows))
    text = "".join(chr(97 + index % 26) for index in range(num_letters))
    at_once, refused = await speak(llm, given, [text + "z"], begins_first=False)
    assert refused == [
        f"text: expected at most {num_letters} more tokens, because each frame reads one, got {num_letters + 1} tokens"
    ]
    slowly, refused = await speak(llm, given, [text[:3], text[3:9], text[9:] + "z", ""], begins_first=True)
    assert refused == [
        f"text: expected at most {num_letters - 9} more tokens, because each frame reads one, "
        f"got {num_letters - 8} tokens"
    ]
    assert codes_of(at_once).shape[1] == num_letters, "the end of the text is read with the last frame"
    assert codes_of(slowly).tolist() == codes_of(at_once).tolist()
    assert [chunks[-1].chunk.report.finish_reason for chunks in (at_once, slowly)] == ["length"] * 2
