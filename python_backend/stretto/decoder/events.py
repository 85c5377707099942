"""Event sent to the client with a chunk's samples."""

from dataclasses import asdict
from typing import Any, cast

from stretto.codecs.base import CodecSpec
from stretto.decoder.chunk_queue import PendingChunk
from stretto.decoder.sessions import Session
from stretto.records.event import Event, ReportEvent


def make_event(pending: PendingChunk, session: Session, num_samples: int, spec: CodecSpec) -> Event:
    """Return the event of a chunk.

    All times in the event are seconds from the beginning of the utterance. `codes` is present if the client requested
    it.

    Args:
        pending: The chunk.
        session: Decoder state of its utterance, which already counts the samples.
        num_samples: Number of samples just rendered for the chunk.
        spec: Numbers of the codec.
    """
    chunk, sample_rate = pending.chunk, session.renderer.sample_rate
    event: Event = {
        "utterance": pending.utterance,
        "index": chunk.index,
        "segment": chunk.segment.name.lower(),
        "text": chunk.text,
        "words": [
            {"word": mark.word, "start_s": round(mark.frame / spec.frame_rate, 4)}
            for mark in chunk.marks
            if mark.word is not None
        ],
        "guidance_changes": [
            {"start_s": round(change.frame / spec.frame_rate, 4), "is_guided": change.is_guided}
            for change in chunk.guidance_changes
        ],
        "start_s": (session.num_samples - num_samples) / sample_rate,
        "duration_s": num_samples / sample_rate,
        "sample_rate": sample_rate,
        "is_final": chunk.is_final,
    }
    if chunk.output_codes:
        event["codes"] = chunk.output_codes
    if chunk.session:
        event["session"] = chunk.session
    if chunk.is_final:
        event["report"] = _report(pending, session)
    return event


def _report(pending: PendingChunk, session: Session) -> ReportEvent:
    sound, sample_rate = session.first_sound, session.renderer.sample_rate
    report = pending.chunk.report
    said: dict[str, Any] = {}
    if report is not None:
        said = asdict(report) | {"guidance_changes": [(each.frame, each.is_guided) for each in report.guidance_changes]}
    said |= {
        "audio_s": session.num_samples / sample_rate,
        "decode_s": session.decode_s,
        "first_sound_s": None if sound is None else sound / sample_rate,
    }
    return cast(ReportEvent, said)
