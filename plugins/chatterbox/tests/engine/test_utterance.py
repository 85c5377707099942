"""Frames without a code are neither decoded nor reported."""

import numpy as np
import pytest

from stretto.engine.protocol import GUIDANCE_OFF, NO_CHANGE
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.utterance import Utterance
from stretto.family.text import SILENT
from stretto.records.chunk import GuidanceChange, Report
from stretto.streams.chunking import ChunkPolicy, Pacer
from stretto_chatterbox.family import ChatterboxVocabulary, chatterbox
from tests.reply_rows import chunks_in

REPORT = Report("stop", 3, 1, 1, 1, 1.5, 0, 0.0, None, 1.0)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_non_code_frames_are_omitted_if_the_family_omits_them(size: int) -> None:
    """Chatterbox replies come in chunks of any size, including the last.

    A change of guidance is reported at its audible frame.
    """
    family = chatterbox(ChatterboxVocabulary())
    start = ChatterboxVocabulary().start
    speech = family.layout.audio[0]
    ids = [5, start, 6, 6560, start, start + 2, start, start + 2, 7, start]
    kept = [code for code in ids if code < len(speech)]
    reply_state = ReplyState.begin(SegmentRules(family, 1024), family.task("tts"), 9)
    speaker = Utterance(reply_state, (), SILENT, Pacer(ChunkPolicy(size, size)), with_codes=True)
    ids = [speech.start + code if code < len(speech) else code for code in ids]
    marks = [NO_CHANGE] * 8 + [GUIDANCE_OFF] + [NO_CHANGE]
    told = [*chunks_in(speaker, np.array([marks, ids], np.int32).T), speaker.finish(REPORT)]
    heard = [item.codes for item in told if item.codes is not None]
    assert np.concatenate(heard, 1).tolist() == [kept]
    assert [code for item in told for (codes,) in [item.chunk.output_codes or ((),)] for code in codes] == kept
    changes = [change for item in told for change in item.chunk.guidance_changes]
    assert changes == [GuidanceChange(kept.index(7), is_guided=False)]
    assert speaker.guidance_changes == [GuidanceChange(8, is_guided=False)], "among all that were drawn"
    assert all(item.codes is not None for item in told[:-1]), "of what is left out nothing is told"
    assert [item.chunk.index for item in told] == list(range(len(told)))
    assert speaker.num_sent_frames == len(ids)
