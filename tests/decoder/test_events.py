from dataclasses import replace

from stretto.decoder.chunk_queue import PendingChunk
from stretto.decoder.events import make_event
from stretto.decoder.sessions import DecoderSession, Renderer
from stretto.decoder.windows import Windower
from stretto.records.chunk import EVENT, Chunk, GuidanceChange, Report, WordMark
from stretto.records.sampling import OutputForm
from stretto.streams.layout import Segment
from tests.fakes import FakeCodec, RecordedReply

REPORT = Report("stop", 9, 8, 20, 20, 1.5, 7, 0.1, 0.2, 0.9)
PLAIN = OutputForm()


def event_of(chunk: Chunk, num_samples: int, form: OutputForm = PLAIN) -> dict:
    codec = FakeCodec()
    session = DecoderSession(Windower(codec.spec), codec.initial_state(1), Renderer(form, codec.spec), 0.0)
    session.num_samples, session.decode_s, session.first_sound = 40, 0.25, 10
    return make_event(
        PendingChunk("u", chunk, None, RecordedReply()), session, num_samples, session.num_samples, codec.spec
    )


def test_event_times_are_seconds_of_the_utterance() -> None:
    marks = (WordMark("one", 2), WordMark(None, 4), WordMark("two", 6))
    changes = (GuidanceChange(6, False),)
    event = event_of(Chunk(3, Segment.AUDIO, "one two", marks, guidance_changes=changes), 12)
    assert event == {
        "utterance": "u",
        "index": 3,
        "segment": "audio",
        "text": "one two",
        "words": [{"word": "one", "start_s": 0.08}, {"word": "two", "start_s": 0.24}],
        "guidance_changes": [{"start_s": 0.24, "is_guided": False}],
        "start_s": 0.28,
        "duration_s": 0.12,
        "sample_rate": 100,
        "is_final": False,
    }


def test_event_times_count_sent_samples_and_word_times_count_frames() -> None:
    event = event_of(Chunk(3, Segment.AUDIO, marks=(WordMark("one", 2),)), 12, OutputForm(sample_rate=8_000))
    assert (event["start_s"], event["duration_s"], event["sample_rate"]) == (28 / 8_000, 12 / 8_000, 8_000)
    assert event["words"] == [{"word": "one", "start_s": 0.08}]


def test_requested_codes_are_in_the_event() -> None:
    chunk = Chunk(3, Segment.AUDIO, output_codes=((1, 2), (3, 4)))
    assert event_of(chunk, 12)["codes"] == ((1, 2), (3, 4))


def test_last_event_has_the_report() -> None:
    event = event_of(Chunk(4, Segment.TAIL, is_final=True, report=REPORT), 0)
    report = event["report"]
    assert event["duration_s"] == 0
    assert (report["finish_reason"], report["guided_frames"], report["seed"]) == ("stop", 20, 7)
    assert (report["audio_s"], report["decode_s"], report["first_sound_s"]) == (0.4, 0.25, 0.1)
    assert EVENT.read("event", EVENT.write(event)) == event


def test_words_have_their_places_and_untimed_ones_are_in_the_report() -> None:
    marks = WordMark("$3", 4, place=(3, 5)), WordMark(None, 5), WordMark("at", 6)
    report = replace(REPORT, untimed_words=("costs",))
    event = event_of(Chunk(4, Segment.TAIL, marks=marks, is_final=True, report=report), 0)
    placed, plain = event["words"]
    assert (placed["word"], placed["text_start"], placed["text_end"]) == ("$3", 3, 5)
    assert plain.keys() == {"word", "start_s"}
    assert event["report"]["untimed_words"] == ["costs"]


def test_final_event_without_lm_report_has_decoder_fields() -> None:
    assert set(event_of(Chunk(4, Segment.AUDIO, is_final=True), 0)["report"]) == {
        "audio_s",
        "decode_s",
        "first_sound_s",
    }
