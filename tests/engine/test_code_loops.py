"""A reply whose codes repeat themselves ends, at the same frame however its rows arrive."""

import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from stretto.config import EngineConfig
from stretto.engine.client import EngineReady, Output
from stretto.engine.code_loops import CodeLoops
from stretto.engine.host import StartedEngines
from stretto.engine.llm import SpeechLLM, loops_of
from stretto.engine.protocol import NO_CHANGE
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.family.text import SILENT
from stretto.records.chunk import CUT_S, LMChunk
from stretto.records.prompt import Prompt
from stretto.streams.chunking import ChunkPolicy
from stretto.testing.checkpoints import make_prompt
from tests.reply_rows import with_states
from tests.small_vocabularies import CSM

CODES = range(100, 200)
LIMITS = CSM.task("speak").speech_limits
NUM_LOOP = round(LIMITS.loop_s * CSM.frame_rate)
NUM_SPOKEN = 20  # frames before the repetition
DETERMINISTIC = (2, 4, 8, 16, 25, 27)  # sizes of chunks, of which the last one has the frames that were held back


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_repetition_is_found_after_its_last_code(period: int) -> None:
    speech = [*range(100, 140)]
    loop = [*range(150, 150 + period)] * 40
    loops = CodeLoops(CODES, max_period=5, num_codes=30)
    assert loops.find(speech + loop) == len(speech) + period + 30 - 1


@pytest.mark.parametrize(
    "ids",
    [
        [*range(100, 200)] * 3,  # longer than the longest period
        ([150] * 29 + [151]) * 4,
        [7] * 400,  # text or pads
    ],
    ids=["long period", "short runs", "no codes"],
)
def test_other_codes_are_no_repetition(ids: list[int]) -> None:
    assert CodeLoops(CODES, max_period=5, num_codes=30).find(ids) is None


def test_ids_between_the_codes_are_ignored_and_parts_are_one_reply() -> None:
    loops = CodeLoops(CODES, max_period=5, num_codes=30)
    assert loops.find([150, 7] * 15) is None
    assert loops.num_left == 30 - 14
    assert loops.find([150] * 20) == 15


class Looping:
    """Engine whose replies repeat their last frame for ever, in groups of some rows."""

    ready = EngineReady(max_model_len=512, num_gpu_blocks=100, block_size=32, max_num_seqs=4)
    started = StartedEngines([])
    num_engines = 1

    def __init__(self, rows: np.ndarray, size: int):
        self._rows = rows
        self._size = size
        self.is_closed = False

    def _outputs(self) -> Iterator[Output]:
        """Yield the rows in groups, the last one with the statistics of a reply that a limit has ended."""
        for first in range(0, len(self._rows), self._size):
            ids = self._rows[first : first + self._size].ravel().tolist()
            is_last = first + self._size >= len(self._rows)
            yield Output([*ids, 0, 0, 1, 0, 0], "stop") if is_last else Output(ids, None)

    def has(self, request_id: str) -> bool:
        return False

    async def call(self, method: str, *_: object) -> None:
        raise AssertionError(f"{method} is not called")

    async def generate(self, *_: object) -> AsyncIterator[Output]:
        try:
            for output in self._outputs():
                yield output
        finally:
            self.is_closed = True


async def reply(monkeypatch: pytest.MonkeyPatch, prompt: Prompt, size: int) -> list[LMChunk]:
    """Return the chunks of a reply whose rows arrive in groups of `size`."""
    monkeypatch.setattr("stretto.engine.llm.config_at", lambda _: {})
    monkeypatch.setattr("stretto.engine.llm.read_family", lambda _: CSM)
    monkeypatch.setattr("stretto.engine.llm.load_text_codec", lambda *_: SILENT)
    starts = np.array([ids.start for ids in CSM.layout.audio])
    spoken = starts + np.arange(NUM_SPOKEN)[:, None] % 7
    spoken[-1] = starts + 3
    frames = np.concatenate([spoken, np.tile(spoken[-1], (400, 1))])
    state = ReplyState.begin(SegmentRules(CSM, 512), CSM.task(prompt.task), len(prompt.rows))
    engine = Looping(with_states(state, np.column_stack([np.full(len(frames), NO_CHANGE), frames])), size)
    llm = SpeechLLM(cast(Any, engine), EngineConfig(Path()), cast(Any, None))
    chunks = [chunk async for chunk in llm.generate(prompt)]
    assert engine.is_closed
    return chunks


def codes_of(chunks: list[LMChunk]) -> np.ndarray:
    return np.concatenate([chunk.codes for chunk in chunks if chunk.codes is not None], 1)


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [1, 3, 64, 1000])
async def test_reply_ends_with_the_repetition_however_its_rows_arrive(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    prompt = make_prompt(CSM, 0, "speak", guidance_scale=1.0)
    audio = replace(prompt.sampling.audio, max_rows=400)
    prompt = replace(prompt, sampling=replace(prompt.sampling, audio=audio))
    sizes = set[tuple[int, ...]]()
    for policy in (ChunkPolicy(1, 1), ChunkPolicy(2, 25, deterministic=True)):
        delivery = replace(prompt.delivery, chunking=policy)
        *chunks, last = await reply(monkeypatch, replace(prompt, delivery=delivery), size)
        report = last.chunk.report
        assert report is not None
        assert (report.finish_reason, report.num_frames) == ("repetition", NUM_SPOKEN + NUM_LOOP)
        assert codes_of([*chunks, last]).shape[1] == NUM_SPOKEN + NUM_LOOP
        num_cut = min(math.ceil(CUT_S * CSM.frame_rate), policy.steady_frames)
        assert last.chunk.num_cut_frames == num_cut
        assert last.codes is not None
        assert last.codes.shape[1] >= num_cut
        if policy.deterministic:
            sizes.add(tuple(chunk.codes.shape[1] for chunk in [*chunks, last] if chunk.codes is not None))
    assert sizes == {DETERMINISTIC}


def test_pauses_of_the_text_may_repeat_codes() -> None:
    prompt = make_prompt(CSM, 0, "speak", guidance_scale=1.0)
    lengths = [cast(CodeLoops, loops_of(replace(prompt, pauses_s=seconds), CSM)).num_left for seconds in (0.0, 10.0)]
    assert lengths == [round((LIMITS.loop_s + seconds) * CSM.frame_rate) for seconds in (0.0, 10.0)]


def test_streamed_text_may_pause() -> None:
    """A model may repeat silence until the next words arrive."""
    prompt = replace(make_prompt(CSM, 0, "speak", guidance_scale=1.0), is_open=True)
    assert loops_of(prompt, CSM) is None
