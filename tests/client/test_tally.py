"""The progress line and the summary of an utterance."""

import io
from types import SimpleNamespace

import numpy as np
import pytest

from stretto_client.speech_stream import SpeechEvent, Word
from stretto_client.tally import Tally

REPORT = {"finish_reason": "stop", "seed": 7, "guidance_scale": 1.5}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def event(num_samples: int | None, **fields: object) -> SpeechEvent:
    pcm = None if num_samples is None else np.zeros(num_samples, np.float32)
    return SpeechEvent(pcm, "u", 0, "audio", sample_rate=16_000, **fields)


def test_first_audio_time_is_of_the_first_event_with_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.1, 10.2, 10.4, 11.0])
    # of this server only
    monkeypatch.setattr("stretto_client.tally.time", SimpleNamespace(monotonic=lambda: next(clock)))
    tally = Tally(stream=io.StringIO())
    for heard in [event(None), event(0), event(16_000), event(16_000, is_final=True, report=REPORT)]:
        tally.add(heard)
    assert tally.first_audio_s == pytest.approx(0.4)
    assert tally.rtf == pytest.approx(0.5)
    assert tally.summary() == ("2.00 s of audio, first audio after 0.40 s, real-time factor 0.50, seed 7, guidance 1.5")


@pytest.mark.parametrize("num_samples", [160, None])
def test_summary_mentions_a_length_finish_reason(num_samples: int | None) -> None:
    tally = Tally(stream=io.StringIO())
    tally.add(event(num_samples, report=REPORT | {"finish_reason": "length"}))
    assert tally.summary().endswith(", ended by length")


def test_summary_names_the_results_of_checks() -> None:
    tally = Tally(stream=io.StringIO())
    hum = {"fault": "hum", "start_s": 1.234}
    words = {"fault": "words", "start_s": 5.0}
    checked = {"faults": [hum, words], "transcripts": ["a hat"], "redrawn": 1, "unchecked": ["language", "digits"]}
    tally.add(event(160, report=REPORT | checked))
    assert tally.summary().endswith(
        "guidance 1.5, faults: hum at 1.2 s, words at 5.0 s, heard: a hat, redrawn 1, unchecked: language, digits"
    )
    tally.add(event(160, report=REPORT | {"faults": [], "redrawn": 0, "redrawn_s": 0.0}))
    assert tally.summary().endswith("guidance 1.5")


def test_progress_line_shows_words_only_on_a_terminal() -> None:
    for stream, shows, expected in [(Terminal(), True, True), (Terminal(), False, False), (io.StringIO(), True, False)]:
        tally = Tally(shows, stream)
        tally.add(event(16_000, words=(Word("hello", 0.0), Word("you", 0.5))))
        tally.end_line()
        assert ("1.0 s  hello you" in stream.getvalue()) is expected
