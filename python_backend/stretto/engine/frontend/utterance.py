"""One reply in the front end: rows in, chunks of text and codes out."""

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from stretto.engine.frontend.frame_codes import FrameCodes
from stretto.engine.request.tracker import SegmentTracker
from stretto.engine.request.wire import GUIDANCE_ON
from stretto.families.base import Family
from stretto.families.text_codec import TextCodec
from stretto.records.chunk import Chunk, GuidanceChange, LMChunk, Report, WordMark
from stretto.records.prompt import Prompt
from stretto.streams.chunking import Pacer
from stretto.streams.layout import StreamLayout
from stretto.streams.segment import Segment

# Cached because they are used per row, and enum member access is slow.
TEXT, TRANSITION, INTERLEAVED = Segment.TEXT, Segment.TRANSITION, Segment.INTERLEAVED


def reference_chunk(rows: np.ndarray, layout: StreamLayout) -> LMChunk:
    """Return the first chunk of a cloned voice: the codes of the prompt's last rows [n, S], as decoder context."""
    streams = list(layout.codebook_streams)
    codes = rows[:, streams].T - np.asarray([[layout.audio[stream].start] for stream in streams])
    return LMChunk(Chunk(0, Segment.AUDIO, num_reference_frames=len(rows)), codes.astype(np.int32))


def first_chunk(prompt: Prompt, family: Family) -> LMChunk | None:
    """Return the chunk that the decoder needs before a reply, or None.

    It holds the reference frames or, if the decoder fills in codebooks, the rows of the whole prompt.
    """
    if family.num_filled_codebooks:
        return LMChunk(Chunk(0, Segment.AUDIO, is_prompt=True), np.ascontiguousarray(prompt.rows.T, np.int32))
    if prompt.num_reference_rows:
        return reference_chunk(prompt.rows[-prompt.num_reference_rows :], family.layout)
    return None


class Utterance:
    """Conversion of a reply's rows to chunks; text is sent at word ends, frames when the pacer allows.

    Args:
        tracker: Segment tracker of the reply.
        words: Words of the prompt, for word timestamps.
        codec: Text codec of the family.
        pacer: Decides when frames are sent.
        with_codes: Include the codes of all output streams in the chunks.

    Attributes:
        num_chunks: Number of chunks so far, including one sent before the reply.
        voice: Index of the codec's voice, named in each chunk.
    """

    def __init__(
        self,
        tracker: SegmentTracker,
        words: tuple[str, ...],
        codec: TextCodec,
        pacer: Pacer,
        with_codes: bool = False,
    ):
        family = tracker.rules.family
        self.tracker = tracker
        self._family, self._words, self._codec = family, words, codec
        self._pacer, self._with_codes = pacer, with_codes
        layout = family.layout
        streams = list(range(layout.num_output_streams) if with_codes else layout.codebook_streams)
        places = range(layout.num_codebooks) if layout.frame_codec.places else None
        self._codebooks = list(places or [streams.index(stream) for stream in layout.codebook_streams])
        self._frames = FrameCodes(family, streams)
        self._reader = codec.reader(tracker.task.name)
        self._text: list[int] = []
        self._marks: list[WordMark] = []
        self._entry_words: list[int | None] | None = None
        self.guidance_changes: list[GuidanceChange] = []
        self._num_told = 0  # number of changes already reported
        self.num_chunks = self.voice = 0

    @property
    def num_sent_frames(self) -> int:
        """Number of frames sent or left out."""
        return self._frames.num_taken

    def push(self, rows: np.ndarray) -> Iterator[LMChunk]:
        """Process rows in the format of `read_rows` and yield the chunks that they complete.

        If chunks must be the same in every run, rows are processed one by one.
        """
        for part in np.split(rows, len(rows)) if self._pacer.policy.deterministic else [rows]:
            yield from self._push(part)

    def _push(self, rows: np.ndarray) -> Iterator[LMChunk]:
        if self.tracker.segment is INTERLEAVED:
            yield from self._push_interleaved(rows)
            return
        text, num_audio_rows, segment = "", 0, TEXT
        for mark, token_id in rows[:, :2].tolist():
            pointer = self.tracker.pointer
            segment = self.tracker.push(token_id)
            if mark:
                frame = (self.tracker.position - 1 - self.tracker.audio_start) // self._family.rows_per_frame
                self.guidance_changes.append(GuidanceChange(frame, mark == GUIDANCE_ON))
            if segment is TEXT:
                self._text.append(token_id)
                text += self._reader.end() if self.tracker.audio_start >= 0 else self._read(token_id)
            elif segment is not TRANSITION:
                num_audio_rows += 1
                if self.tracker.pointer > pointer:
                    self._mark(self.tracker.num_frames - 1)
        if text:
            yield self._chunk(TEXT, text=text)
        if num_audio_rows:
            self._frames.push(rows[-num_audio_rows:, 1:])
            yield from self._heard(segment)

    def _push_interleaved(self, rows: np.ndarray) -> Iterator[LMChunk]:
        text, audio = "", self._family.layout.audio[0]
        is_code = (rows[:, 1] >= audio.start) & (rows[:, 1] < audio.stop)
        for token_id, is_audio in zip(rows[:, 1].tolist(), is_code.tolist(), strict=True):
            self.tracker.push(token_id)
            text += "" if is_audio else self._read(token_id)
        if text:
            yield self._chunk(INTERLEAVED, text=text)
        self._frames.push(rows[is_code][:, 1:])
        yield from self._heard(INTERLEAVED)

    def _heard(self, segment: Segment) -> Iterator[LMChunk]:
        """Yield chunks of the frames that are due.

        No chunk is sent if all of its frames are left out; a later chunk reports guidance changes at them.
        """
        while size := self._pacer.take(self._num_ready):
            if (codes := self._frames.take(size)) is not None:
                yield self._chunk(segment, codes=codes)

    def _read(self, token_id: int) -> str:
        return self._reader.end() if token_id == self._family.end_of_reply else self._reader.push(token_id)

    def _mark(self, frame: int) -> None:
        """Record the word, or pause, that begins at `frame`."""
        if self._entry_words is None:
            self._entry_words = self._codec.words(self._text)
            spoken = {word for word in self._entry_words if word is not None}
            if len(spoken) != len(self._words):
                self._entry_words = []  # the model generated other words than the prompt's
        entry = self.tracker.pointer - 1
        if entry >= len(self._entry_words):
            return
        word = self._entry_words[entry]
        if word is None:
            self._marks.append(WordMark(None, frame))
        elif entry == 0 or self._entry_words[entry - 1] != word:
            self._marks.append(WordMark(self._words[word], frame))

    @property
    def _num_ready(self) -> int:
        """Number of complete frames of the reply not sent yet."""
        if self.tracker.audio_end < 0:
            return self._frames.num_ready
        return min(self._frames.num_ready, self.tracker.num_frames - self.num_sent_frames)

    def _sent(self, chunk: Chunk, codes: np.ndarray | None) -> LMChunk:
        """Return the chunk with the codebook codes for the decoder and, on request, all codes for the client."""
        if codes is None or not self._with_codes:
            return LMChunk(chunk, codes)
        return LMChunk(replace(chunk, output_codes=tuple(map(tuple, codes.tolist()))), codes[self._codebooks])

    def _chunk(self, segment: Segment, text: str = "", codes: np.ndarray | None = None) -> LMChunk:
        sent = 0 if codes is None else sum(mark.frame < self.num_sent_frames for mark in self._marks)
        marks, self._marks = tuple(self._marks[:sent]), self._marks[sent:]
        changes = self._changes_before(self.num_sent_frames)
        chunk = Chunk(self.num_chunks, segment, text, marks, guidance_changes=changes, voice=self.voice)
        self.num_chunks += 1
        return self._sent(chunk, codes)

    def _changes_before(self, frame: int) -> tuple[GuidanceChange, ...]:
        """Return the unreported guidance changes before `frame`, as indices of kept frames."""
        changes = [change for change in self.guidance_changes[self._num_told :] if change.frame < frame]
        self._num_told += len(changes)
        return tuple(replace(change, frame=self._frames.heard_at(change.frame)) for change in changes)

    def finish(self, report: Report) -> LMChunk:
        """Return the last chunk, with the rest of the reply and the report."""
        segment = Segment.TAIL if self.tracker.audio_start >= 0 else self.tracker.segment
        text = "" if segment is Segment.TAIL else self._reader.end()
        codes = self._frames.take(self._num_ready) if self._num_ready > 0 else None
        changes = self._changes_before(sys.maxsize)
        last = Chunk(self.num_chunks, segment, text, tuple(self._marks), True, report, changes, voice=self.voice)
        return self._sent(last, codes)
