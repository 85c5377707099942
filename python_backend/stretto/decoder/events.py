"""Events of chunks: words, codes and reports, with times in seconds."""

from dataclasses import asdict
from typing import Any, cast

from stretto.codecs.base import CodecSpec
from stretto.decoder.chunk_queue import PendingChunk
from stretto.decoder.sessions import DecoderSession
from stretto.records.chunk import Event, ReportEvent, WordMark, WordTime


def make_event(pending: PendingChunk, session: DecoderSession, num_samples: int, end: int, spec: CodecSpec) -> Event:
    """Return the event of a chunk, with times in seconds from the start of the utterance.

    Args:
        session: State of the utterance, with the chunk's samples already counted.
        end: Position in the utterance, in samples, at which these samples end.
    """
    chunk = pending.chunk
    sample_rate = session.renderer.sample_rate
    event: Event = {
        "utterance": pending.utterance,
        "index": chunk.index,
        "segment": chunk.segment.name.lower(),
        "text": chunk.text,
        "words": [timed_word(mark, spec.frame_rate) for mark in chunk.marks if mark.word is not None],
        "guidance_changes": [
            {"start_s": round(change.frame / spec.frame_rate, 4), "is_guided": change.is_guided}
            for change in chunk.guidance_changes
        ],
        "start_s": (end - num_samples) / sample_rate,
        "duration_s": num_samples / sample_rate,
        "sample_rate": sample_rate,
        "is_final": chunk.is_final,
    }
    if chunk.output_codes:
        event["codes"] = chunk.output_codes
    if chunk.session:
        event["session"] = chunk.session
    if chunk.pauses:
        event["pauses"] = chunk.pauses
    if chunk.num_transcribed is not None:
        event["begun"] = [timed_word(mark, spec.frame_rate) for mark in chunk.begun]
        event["transcribed_s"] = round(chunk.num_transcribed / spec.frame_rate, 4)
    if chunk.passages:
        event["passages"] = chunk.passages
    if session.marking is not None and num_samples:
        event["marker"] = session.marking.name
    if chunk.is_final:
        event["report"] = _report(pending, session)
    return event


def timed_word(mark: WordMark, frame_rate: float) -> WordTime:
    """Return a word with its times in seconds."""
    assert mark.word is not None
    word: WordTime = {"word": mark.word, "start_s": round(mark.frame / frame_rate, 4)}
    if mark.end is not None:
        word["end_s"] = round(mark.end / frame_rate, 4)
    if mark.place is not None:
        word["text_start"], word["text_end"] = mark.place
    return word


def _report(pending: PendingChunk, session: DecoderSession) -> ReportEvent:
    sound = session.first_sound
    sample_rate = session.renderer.sample_rate
    report = pending.chunk.report
    fields: dict[str, Any] = {}
    if report is not None:
        fields = asdict(report) | {
            "guidance_changes": [
                (guidance_change.frame, guidance_change.is_guided) for guidance_change in report.guidance_changes
            ],
            "untimed_words": [*report.untimed_words],
        }
    fields |= {
        "audio_s": session.num_samples / sample_rate,
        "decode_s": session.decode_s,
        "first_sound_s": None if sound is None else sound / sample_rate,
    }
    if session.marking is not None:
        fields["marker"] = session.marking.name
    return cast(ReportEvent, fields)
