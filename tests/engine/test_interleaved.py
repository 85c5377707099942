"""Output of replies with text and codes in a single stream, for any grouping of rows."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from stretto.engine.prompt_checks import Capacity, check_prompt
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.utterance import Utterance
from stretto.errors import InvalidRequest
from stretto.families.vita_audio.family import VitaVocabulary, vita_audio
from stretto.family.option_checks import check_sampling
from stretto.family.text import TextCodec
from stretto.preprocessing.options import read_options
from stretto.records.chunk import LMChunk, Report
from stretto.records.prompt import Prompt
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.streams.layout import Segment
from tests.reply_rows import chunks_in
from tests.speech_families import EIGHT_STREAMS, INTERLEAVED

RULES = SegmentRules(INTERLEAVED, 128)
FIRST, REPLY = INTERLEAVED.layout.audio[0].start, INTERLEAVED.task("reply")
END = INTERLEAVED.end_of_reply
# Words 20 … 25 and codes 0 … 8, taking turns, and the end.
SAID = [20, 21, *(FIRST + code for code in range(5)), 22, 23, 24, *(FIRST + code for code in range(5, 9)), 25, END]
REPORT = Report("stop", 1, 1, 1, 0, 1.0, 0, 0.0, None, 1.0)


class Spelling:
    """Text codec that spells a token as its number; the last word comes with the end."""

    rest = ""

    def push(self, token_id: int) -> str:
        self.rest = "25" if token_id == 25 else ""
        return "" if self.rest else f"{token_id} "

    def end(self) -> str:
        rest, self.rest = self.rest, ""
        return rest


def said(sizes: list[int]) -> tuple[ReplyState, list[LMChunk]]:
    """Return the chunks of a reply whose rows arrive in groups of `sizes`."""
    reply = ReplyState.begin(RULES, REPLY, 7)
    codec = TextCodec(lambda task: Spelling(), lambda ids: [None] * len(ids))
    utterance = Utterance(reply, (), codec, Pacer(ChunkPolicy(2, 4, deterministic=True)))
    rows, chunks = np.array([[0, token] for token in SAID]), list[LMChunk]()
    for part in np.split(rows, np.cumsum(sizes)):
        chunks += chunks_in(utterance, part) if len(part) else []
    return reply, [*chunks, utterance.finish(REPORT)]


@pytest.mark.parametrize("sizes", [[], [1] * 16, [3, 8, 1]])
def test_interleaved_text_and_frames_are_sent_in_order(sizes: list[int]) -> None:
    reply, chunks = said(sizes)
    assert "".join(each.chunk.text for each in chunks) == "20 21 22 23 24 25"
    codes = np.concatenate([each.codes for each in chunks if each.codes is not None], 1)
    assert codes.tolist() == [list(range(9))]
    assert {each.chunk.segment for each in chunks} == {Segment.INTERLEAVED}
    assert [each.chunk.index for each in chunks] == list(range(len(chunks)))
    assert (reply.num_frames, reply.num_text_tokens) == (9, 15)  # in its rows, as limits count them


def test_interleaved_rows_are_sent_before_later_rows() -> None:
    _, chunks = said([1] * 16)
    kinds = ["text" if each.codes is None else each.codes.shape[1] for each in chunks]
    assert kinds == ["text", "text", 2, "text", "text", "text", 4, "text", 3]


def prompt(family: str, **changes: object) -> Prompt:
    task = (INTERLEAVED if family == "interleaved" else EIGHT_STREAMS).tasks[0]
    layout = (INTERLEAVED if family == "interleaved" else EIGHT_STREAMS).layout
    rows = np.full((3, layout.num_input_streams), layout.pad_id, np.int32)
    return Prompt(task.name, rows, replace(task.sampling, **changes))


def test_repetition_penalty_is_checked_for_support_and_range() -> None:
    capacity = Capacity(40, 32, 4)
    assert check_prompt(prompt("interleaved", repetition_penalty=1.2, guidance_scale=1.0), RULES, capacity)
    with pytest.raises(
        InvalidRequest, match=r"options.repetition_penalty: expected 1.0 \(eight_streams does not support this"
    ):
        check_prompt(prompt("eight", repetition_penalty=1.2), SegmentRules(EIGHT_STREAMS, 128), capacity)
    for penalty in ("0.05", "10.5", "-1"):
        with pytest.raises(InvalidRequest, match=r"options.repetition_penalty: expected a number in \[0.1, 10.0\]"):
            read_options(f'{{"repetition_penalty": {penalty}}}', INTERLEAVED, REPLY, 12.5)
    assert read_options('{"repetition_penalty": 1.3}', INTERLEAVED, REPLY, 12.5).sampling.repetition_penalty == 1.3


def test_interleaved_segment_has_one_option_set_and_a_text_length_check() -> None:
    for key in ('"audio": {}', '"max_audio_s": 2', '"guidance_scale": 2'):
        with pytest.raises(
            InvalidRequest, match=r"no value \(options.text sets the sampling of text and audio for 'reply'"
        ):
            read_options(f"{{{key}}}", INTERLEAVED, REPLY, 12.5)
    options = read_options('{"temperature": 0.5, "output": {"codes": true}}', INTERLEAVED, REPLY, 12.5)
    assert options.sampling.text.temperature == 0.5
    assert options.delivery.with_codes
    with pytest.raises(InvalidRequest, match=r"options.text.max_rows: expected .* of at most .* KV blocks"):
        check_prompt(prompt("interleaved", guidance_scale=1.0), RULES, Capacity(1, 32, 4))
    long = replace(prompt("interleaved", guidance_scale=1.0), rows=np.zeros((128, 1), np.int32))
    with pytest.raises(InvalidRequest, match=r"a prompt of at most 127 rows for task reply"):
        check_prompt(long, RULES, Capacity(40, 32, 4))


def test_schedule_names_depend_on_the_number_of_modules() -> None:
    few = vita_audio(VitaVocabulary(num_modules=8, schedule="vanilla"))
    for family, name in ((vita_audio(VitaVocabulary()), "turbo"), (few, "vanilla")):
        options = read_options(f'{{"schedule": "{name}"}}', family, family.tasks[0], 12.5)
        assert options.sampling.schedule == name
        assert read_options(None, family, family.tasks[0], 12.5).sampling.schedule is None
        number: Any = 5
        with pytest.raises(InvalidRequest, match=r"options.schedule: expected a name or a tuple of numbers, got 5"):
            check_sampling(replace(options.sampling, schedule=number), family, family.tasks[0])
    for family, name, message in (
        (vita_audio(VitaVocabulary()), '"fast"', "one of balance, vanilla, boost, turbo, or numbers, got 'fast'"),
        (few, '"turbo"', "one of vanilla, or numbers, got 'turbo'"),
        (INTERLEAVED, '"turbo"', "no value (this model generates one row per step), got 'turbo'"),
    ):
        with pytest.raises(InvalidRequest, match=re.escape(f"options.schedule: expected {message}")):
            read_options(f'{{"schedule": {name}}}', family, family.tasks[0], 12.5)
