"""Pauses and words that the models report become parts of chunks."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest

from plugins.kyutai.tests.small_families import KYUTAI_TTS
from stretto.engine.protocol import NO_CHANGE
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.utterance import Utterance
from stretto.family.text import SILENT
from stretto.records.chunk import Report, WordMark
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto.streams.layout import words_of
from stretto_kyutai.kyutai_stt.family import SttVocabulary, kyutai_stt
from stretto_kyutai.kyutai_tts.mechanism.script import pack_word
from tests.reply_rows import chunks_in

REPORT = Report("stop", 3, 1, 1, 1, 1.5, 0, 0.0, None, 1.0)


@pytest.mark.parametrize("sizes", [[1, 1, 1, 1, 1], [3, 2], [5]])
def test_pauses_are_reported_for_each_frame(sizes: list[int]) -> None:
    """The first row precedes the first frame, and the last one is the end; without the option, none are sent."""
    family = kyutai_stt(SttVocabulary(num_pauses=2))
    task = family.task("asr")
    rules = SegmentRules(family, 512)
    end = family.end_of_reply
    pauses = words_of(np.array([[0.9, 0.9], [0.25, 0.5], [0.12349, 0.0], [1.0, 0.75], [0.9, 0.9]]))
    rows = np.column_stack([np.full(5, NO_CHANGE), [3, 3, 7, 0, end], pauses]).astype(np.int32)
    for with_pauses in (True, False):
        reply_state = ReplyState.begin(rules, task, 1)
        listener = Utterance(reply_state, (), SILENT, Pacer(ChunkPolicy()), with_pauses=with_pauses)
        chunks = [item.chunk for part in np.split(rows, np.cumsum(sizes)[:-1]) for item in chunks_in(listener, part)]
        found = [row for chunk in chunks for row in chunk.pauses]
        assert found == ([(0.25, 0.5), (0.1235, 0.0), (1.0, 0.75)] if with_pauses else [])
        assert not listener.finish(REPORT).chunk.pauses


def test_words_that_the_model_takes_are_marked_at_their_rows() -> None:
    """A break has no mark, and neither has a word that begins in the row that ends the audio."""
    rules = SegmentRules(KYUTAI_TTS, 512)
    layout = KYUTAI_TTS.layout
    words = pack_word([5, 6], 2), pack_word([], 3), pack_word([7], 0), pack_word([8], 0)
    track = rules.track(9, [*chain(*words), 0])
    state = ReplyState.begin(rules, KYUTAI_TTS.tasks[0], 9, track)
    speaker = Utterance(replace(state), ("one", "two", "three"), SILENT, Pacer(ChunkPolicy(1, 1)))
    speaker.track = track
    marks = list[WordMark]()
    codes = [ids.start for ids in layout.audio]
    for row, taken in enumerate([0, 1, 1, 2, 3, 4]):
        state.own_values = [taken if name == "taken" else 0 for name in KYUTAI_TTS.drawing.state]
        state.audio_end = 9 + row if row == 5 else -1
        sent = [NO_CHANGE, *codes[: KYUTAI_TTS.num_row_words], *state.values(rules.sent_state)]
        marks += [mark for item in speaker.push(np.array([sent])) for mark in item.chunk.marks]
    marks += speaker.finish(REPORT).chunk.marks
    assert marks == [WordMark("one", 1), WordMark("two", 4)]
    assert speaker.words.untimed == ("three",)
