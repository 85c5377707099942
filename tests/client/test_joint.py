"""Joined utterances have continuous times, no gap, no step between them, and a single report."""

from dataclasses import replace

import numpy as np
import pytest

from stretto_client import GuidanceChange, SpeechEvent, Word
from stretto_client.joint import FADE_S, Joint, add_reports, from_value

RATE = 16_000


def event(pcm: np.ndarray | None, is_final: bool = False, **fields: object) -> SpeechEvent:
    report = {"finish_reason": "stop", "num_frames": 4, "seed": 7} if is_final else None
    chunk = {"utterance": "u", "index": 0, "segment": "audio", "sample_rate": RATE, "report": report} | fields
    return SpeechEvent(pcm=pcm, is_final=is_final, **chunk)  # type: ignore[arg-type]


def tone(num_samples: int, phase: float) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 220 * np.arange(num_samples) / RATE + phase)).astype(np.float32)


def join(*utterances: list[SpeechEvent]) -> list[SpeechEvent]:
    joint = Joint()
    last = len(utterances) - 1
    return [joint.joined(each, n == last) for n, utterance in enumerate(utterances) for each in utterance]


def test_joined_events_have_continuous_times_and_a_single_final_event() -> None:
    words, changes = (Word("a", 0.01),), (GuidanceChange(0.02, False),)
    first = [event(None, text="a", utterance="x"), event(tone(1600, 0), is_final=True, words=words)]
    second = [event(None, text="b", utterance="y"), event(tone(800, 0), True, words=words, guidance_changes=changes)]
    events = join(first, second)
    assert [each.index for each in events] == [0, 1, 2, 3]
    assert {each.utterance for each in events} == {"x"}
    assert [each.text for each in events] == ["a", "", " b", ""]
    assert [each.is_final for each in events] == [False, False, False, True]
    assert [each.start_s for each in events] == [0.0, 0.0, 0.1, 0.1]
    assert [word.start_s for each in events for word in each.words] == pytest.approx([0.01, 0.11])
    assert events[-1].guidance_changes == (GuidanceChange(0.1 + 0.02, False),)
    assert [each.report for each in events[:-1]] == [None] * 3
    assert events[-1].report == {"finish_reason": "stop", "num_frames": 8, "seed": 7}


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_joins_add_no_samples_and_no_audible_steps(dtype: type) -> None:
    scale = 32_000 if dtype is np.int16 else 1
    high, low = ((tone(1601, phase) * scale).astype(dtype) for phase in (np.pi / 2, -np.pi / 2))
    events = join([event(high, True)], [event(low[:10]), event(low[10:], True)])
    pcm = np.concatenate([each.pcm for each in events if each.pcm is not None]).astype(np.float64) / scale
    assert len(pcm) == 3202
    assert [each.pcm.dtype for each in events if each.pcm is not None] == [dtype] * 3
    largest_of_the_tone = np.abs(np.diff(high.astype(np.float64) / scale)).max()
    # Ten samples are too few to fade in: the rest of the way is one step to the next chunk, not more.
    assert np.abs(np.diff(pcm[:1611])).max() < 2 * largest_of_the_tone + 0.2


def test_fade_starts_at_the_value_and_changes_only_its_length() -> None:
    pcm = tone(400, 1.0)
    faded = from_value(pcm, -0.25, round(FADE_S * RATE))
    assert faded[0] == pytest.approx(-0.25)
    assert np.array_equal(faded[80:], pcm[80:])
    assert not np.array_equal(faded[:80], pcm[:80])
    assert np.abs(np.diff(faded - pcm)).max() < 0.04


def test_integer_samples_are_clipped_to_their_range() -> None:
    loud = np.full(100, 32_767, np.int16)
    assert from_value(loud, 40_000.0, 50).max() == 32_767


def test_joint_report_has_truncation_and_first_audio_time() -> None:
    silent = {"finish_reason": "length", "audio_s": 1.0, "first_sound_s": None, "num_frames": 3, "guidance_changes": []}
    heard = {"finish_reason": "stop", "audio_s": 2.0, "first_sound_s": 0.5, "num_frames": 4}
    whole = add_reports(silent, heard | {"guidance_changes": [(1, False)]})
    assert whole["finish_reason"] == "length"
    assert (whole["audio_s"], whole["first_sound_s"], whole["num_frames"]) == (3.0, 1.5, 7)
    assert whole["guidance_changes"] == [(4, False)]
    assert add_reports(heard, silent)["finish_reason"] == "length"


def test_joined_clauses_offset_words_and_combine_aligned() -> None:
    word = (Word("a", 0.01, 0.04, 0.5),)
    events = join([event(tone(1600, 0), is_final=True, words=word)], [event(tone(800, 0), True, words=word)])
    (first, second) = [each.words[0] for each in events]
    assert first == Word("a", 0.01, 0.04, 0.5)
    assert (second.start_s, second.end_s, second.score) == (pytest.approx(0.11), pytest.approx(0.14), 0.5)
    said = {"finish_reason": "stop"}
    assert "aligned" not in add_reports(said, said)
    assert add_reports(said | {"aligned": True}, said | {"aligned": True})["aligned"] is True
    assert add_reports(said | {"aligned": False}, said | {"aligned": True})["aligned"] is False


def test_faults_of_clauses_have_their_times_in_the_whole_speech() -> None:
    """The pause before the second clause counts, too."""
    joint = Joint()
    report = {"finish_reason": "stop", "faults": [{"fault": "hum", "start_s": 0.02}], "redrawn": 1, "redrawn_s": 2.0}
    clause = replace(event(tone(1600, 0), is_final=True), report=report)
    joint.joined(clause, is_last=False)
    joint.add(0.5)
    whole = joint.joined(clause, is_last=True).report
    assert whole is not None
    starts = [fault["start_s"] for fault in whole["faults"]]
    assert starts == [0.02, pytest.approx(0.02 + 1600 / RATE + 0.5)]
    assert (whole["redrawn"], whole["redrawn_s"]) == (2, 4.0)


def test_lists_of_later_clauses_are_kept_if_earlier_ones_have_none() -> None:
    some = {"transcripts": ["a"], "unchecked": ["digits"], "untimed_words": ["b"], "faults": []}
    plain = {"finish_reason": "stop"}
    assert add_reports(plain, plain | some) == add_reports(plain | some, plain) == plain | some
