"""The Qwen3-Omni talker through `SpeechLLM`, as used by a program that has a thinker."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from plugins.qwen3_omni.tests.published_qwen3_omni import Theirs, cases, convert
from stretto.config import EngineConfig
from stretto.engine.llm import SpeechLLM
from stretto.errors import InvalidRequest
from stretto.records.prompt import Prompt
from stretto_qwen3_omni.qwen3_omni_talker.prompt import TalkerPrompts
from tests.engine.forking import forked_processes
from tests.engine.harness import DEFAULTS

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]
LENGTH, NUM_FRAMES = 128, 24


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("talker"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def llm(checkpoint: Path) -> AsyncIterator[SpeechLLM]:
    with forked_processes():
        running = await SpeechLLM.start(EngineConfig(checkpoint, {**DEFAULTS, "max_model_len": LENGTH}))
    yield running
    running.shutdown()


async def codes(llm: SpeechLLM, prompt: Prompt, request_id: str | None = None) -> np.ndarray:
    return np.concatenate(
        [chunk.codes async for chunk in llm.generate(prompt, request_id) if chunk.codes is not None], 1
    )


async def test_streamed_text_gives_the_same_codes_as_complete_text(llm: SpeechLLM, checkpoint: Path) -> None:
    case = cases()["audio"]
    short = replace(case, words=case.words[:9])
    expected = Theirs().reply(short, NUM_FRAMES).codes.T
    whole = short.prompt(checkpoint, NUM_FRAMES)
    assert np.array_equal(await codes(llm, whole), expected)
    begun = replace(whole, track=whole.track[:2], is_open=True)
    async with asyncio.TaskGroup() as tasks:
        reply = tasks.create_task(codes(llm, begun, "live"))
        await asyncio.sleep(0)  # from here on the reply takes words
        for piece in (short.words[3:4], [], short.words[4:8], short.words[8:]):
            await llm.write("live", piece)
        with pytest.raises(InvalidRequest, match=r"^text: expected token ids in \[0, 1482\), got \[1482\]"):
            await llm.write("live", [1482])
        await llm.write("live", [], is_last=True)
    assert np.array_equal(reply.result(), expected)
    with pytest.raises(InvalidRequest, match=r"^request_id: expected the id of a reply whose streamed text is open"):
        await llm.write("live", [5])


async def test_refused_talker_prompts_do_not_affect_the_next_reply(llm: SpeechLLM, checkpoint: Path) -> None:
    case, writer = cases()["one word"], TalkerPrompts.at(checkpoint)
    good = case.prompt(checkpoint, NUM_FRAMES)
    expected = await codes(llm, good)
    heard = cases()["audio"].prompt(checkpoint, NUM_FRAMES)
    wide = replace(heard.audios[0], features=np.zeros((9, 50), np.float32))
    bad = {
        "text, audio or messages: expected a prompt of at most": writer.write([*case.conversation] * 40, [5], "ethan"),
        "text: expected at most 112 tokens after the prompt, got 200": writer.write(
            case.conversation, [5] * 200, "ethan"
        ),
        r"audios\[0\]: expected features \[F >= 1, 96\], got \[9, 50\]": replace(heard, audios=(wide,)),
    }
    for message, prompt in bad.items():
        with pytest.raises(InvalidRequest, match=f"^{message}"):
            await codes(llm, prompt)
    assert np.array_equal(await codes(llm, good), expected)
