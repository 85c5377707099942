"""Front-end side of one reply: rows converted to chunks."""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil

import numpy as np

from stretto.engine.code_loops import CodeLoops
from stretto.engine.frame_codes import FrameCodes
from stretto.engine.protocol import GUIDANCE_ON
from stretto.engine.reply_rules import ReplyState
from stretto.engine.tracks import Track
from stretto.engine.word_times import WordTimes
from stretto.family.base import Family
from stretto.family.text import ContinuingReader, LanguageReader, PassageReader, TextCodec, TimedReader
from stretto.records.chunk import (
    CUT_S,
    Alignment,
    Chunk,
    Continuation,
    GuidanceChange,
    LMChunk,
    Report,
    Sound,
    WordMark,
)
from stretto.records.prompt import MAX_FIRST_FRAMES, Prompt, SourceWord
from stretto.streams.chunking import Pacer
from stretto.streams.layout import Segment, StreamLayout, latents_of
from stretto_contract.finish_reasons import STOP

# Cached because they are used per row, and enum member access is slow.
TEXT = Segment.TEXT
TRANSITION = Segment.TRANSITION
INTERLEAVED = Segment.INTERLEAVED


def reference_chunk(prompt: Prompt, layout: StreamLayout) -> LMChunk:
    """Return a chunk with the reference frames at the end of a prompt, as codes or, for latents, as words.

    The frames are the decoder's left context for the reply.
    """
    streams = layout.codebook_streams
    codes = np.stack([prompt.reference_ids(stream, layout.delays[stream]) for stream in streams])
    if not layout.latents:
        codes = codes - np.array([[layout.audio[stream].start] for stream in streams])
    return LMChunk(Chunk(0, Segment.AUDIO, num_reference_frames=codes.shape[1]), codes.astype(np.int32))


def num_first_frames(prompt: Prompt) -> int:
    """Return the number of frames in a reply's first chunk, or 0 if only the decoder may decode them.

    The engine decodes them, too, if the chunk is short and its samples depend on no other frames. If samples may not
    depend on other utterances, only the decoder decodes them, one utterance at a time.
    """
    policy = prompt.delivery.chunking
    number = policy.silent_frames + policy.least_audible
    has_context = prompt.num_reference_rows > 0 or prompt.sound is not None or prompt.voice > 0
    waits = policy.held_frames > 0 or bool(policy.blocks)
    return 0 if has_context or waits or policy.deterministic or number > MAX_FIRST_FRAMES else number


def samples_of(numbers: np.ndarray, codes: np.ndarray) -> bytes:
    """Return the samples that the engine decoded for a chunk with `codes` [K, T] (empty if it decoded other codes).

    Args:
        numbers: Codes and samples from the engine, float32 [K * T + n].
    """
    size = codes.size
    is_same = size < len(numbers) and np.array_equal(numbers[:size], codes.ravel())
    return numbers[size:].astype("<f4", copy=False).tobytes() if is_same else b""


def first_chunk(prompt: Prompt, family: Family) -> LMChunk | None:
    """Return the chunk that the decoder needs before the reply's own: frames of a voice reference; None without one."""
    if prompt.num_reference_rows:
        return reference_chunk(prompt, family.layout)
    return None


class Utterance:
    """Converter of a reply's rows to chunks. Text is sent at the end of a word, frames when the pacer permits.

    Args:
        with_codes: True to include the codes of all output streams in the chunks.
        with_pauses: True to send a chunk with pause probabilities for each frame.
        with_progress: True to send a chunk for each row of a transcript, with the words that are complete.
        sources: For each of `words`, the word of the request's text; empty if unknown.

    Attributes:
        guidance_changes: All guidance changes so far, in order of their frames.
        num_chunks: Number of chunks so far, including a chunk sent before the reply's own (see `first_chunk`).
        voice: Index of the codec's voice, sent with each chunk.
        alignment: Request for word times, sent with the first chunk; None if not requested.
        sound: Recording of the voice, sent with the first chunk; None if the decoder needs none.
        track: Track of the reply, if the model reports when words of the track begin.
        early: Codes and samples of the reply's first frames, if the engine has decoded them.
        loops: Search for repeated codes, which end the reply; None not to search.
        is_looping: True if such a repetition has ended the reply. Further rows are ignored.
    """

    def __init__(
        self,
        reply: ReplyState,
        words: tuple[str, ...],
        codec: TextCodec,
        pacer: Pacer,
        with_codes: bool = False,
        with_pauses: bool = False,
        with_progress: bool = False,
        sources: tuple[SourceWord, ...] = (),
    ):
        family = reply.rules.family
        self.reply = reply
        self._family = family
        self._text_rows = reply.rules.text_rows
        self._word_column = family.drawing.word_column
        self._codec = codec
        self.words = WordTimes(words, sources, codec, reply.task.name)
        self._pacer = pacer
        self._with_codes = with_codes
        self._with_pauses = with_pauses
        self._with_progress = with_progress
        self._pauses: tuple[tuple[float, ...], ...] = ()  # for frames that have not been sent
        self._has_rows = False
        self._has_codes = False  # True once codes have been sent
        layout = family.layout
        streams = list(range(layout.num_output_streams) if with_codes else layout.codebook_streams)
        places = range(layout.num_codebooks) if layout.frame_codec.places else None
        self._codebooks = list(places or [streams.index(stream) for stream in layout.codebook_streams])
        self._frames = FrameCodes(family, streams)
        self._reader = codec.reader(reply.task.name)
        self._text: list[int] = []
        self._num_silent = pacer.policy.silent_frames
        self._frame_texts: deque[str] = deque()  # for rows with text beside codes whose frames have not been sent
        self._times: list[WordMark] = []  # words of a transcript that have not been sent
        self.guidance_changes: list[GuidanceChange] = []
        self._num_reported = 0  # number of changes already reported
        self.num_chunks = self.voice = 0
        self.alignment: Alignment | None = None
        self.sound: Sound | None = None
        self.track: Track | None = None
        self.early: np.ndarray | None = None
        self.loops: CodeLoops | None = None
        self.is_looping = False

    @property
    def language(self) -> str:
        """English name of a recording's language in lower case, as the model names it (empty if it names none)."""
        return self._reader.language if isinstance(self._reader, LanguageReader) else ""

    def begin_text(self, beginning: str) -> None:
        """Read the beginning of the reply's text, which the prompt contains."""
        assert isinstance(self._reader, ContinuingReader), "the family has the option `beginning`"
        self._reader.begin(beginning)

    @property
    def continuation(self) -> Continuation | None:
        """Part of the text that a request for a longer recording keeps, or None without `begin_text`."""
        return self._reader.continuation() if isinstance(self._reader, ContinuingReader) else None

    @property
    def num_sent_frames(self) -> int:
        """Number of frames that were sent or omitted."""
        return self._frames.num_taken

    def reply_after(self, rows: np.ndarray) -> ReplyState:
        """Return the state of the reply after further rows."""
        reply = replace(self.reply)
        for state in self._states_in(rows[-1:]):
            reply.move(reply.position + len(rows), state)
        return reply

    def push(self, rows: np.ndarray) -> Iterator[LMChunk]:
        """Process rows in the format of `read_rows`, and yield the chunks that they complete.

        With a deterministic chunk policy, rows are processed one at a time, so that chunks do not depend on how rows
        arrive.
        """
        for step_rows in np.split(rows, len(rows)) if self._pacer.policy.deterministic else [rows]:
            yield from self._push(self._before_loop(step_rows))
            if self.is_looping:
                break

    def _push(self, rows: np.ndarray) -> Iterator[LMChunk]:
        reply = self.reply
        if reply.segment is INTERLEAVED:
            yield from self._push_interleaved(rows)
            return
        text = ""
        num_audio_rows = 0
        segment = TEXT
        for (mark, token_id), state in zip(rows[:, :2].tolist(), self._states_in(rows), strict=True):
            segment = reply.segment
            own_values = reply.own_values
            reply.move(reply.position + 1, state)
            if mark:
                frame = (reply.position - 1 - reply.audio_start) // self._family.rows_per_frame
                self.guidance_changes.append(GuidanceChange(frame, mark == GUIDANCE_ON))
            if segment is TEXT:
                self._text.append(token_id)
                text += self._reader.end() if reply.audio_start >= 0 else self._read(token_id)
            elif segment is not TRANSITION:
                num_audio_rows += 1
                if self._family.has_text_beside_codes and token_id != self._family.end_of_reply:
                    self._frame_texts.append(self._reader.push(token_id))
                if reply.audio_end < 0:  # a word that begins in the row that ends the audio is not spoken
                    self._mark_words(reply, own_values)
        self._times += self._reader.pop_marks() if isinstance(self._reader, TimedReader) else []
        if self._with_pauses:
            self._pauses += self._pauses_in(rows)
        if text or self._times or self._pauses or self._with_progress:
            yield self._chunk(TEXT, text=text)
        if num_audio_rows:
            audio = rows[-num_audio_rows:, 1:]
            if self._text_rows is not None:
                audio = audio[~np.isin(audio[:, 0], self._text_rows.ids)]
            self._frames.push(audio)
            yield from self._due_chunks(segment)

    def _before_loop(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows up to the row in which a repetition of codes becomes too long."""
        if self.loops is None:
            return rows
        first = self._family.layout.codebook_streams[0]
        end = self.loops.find(rows[:, 1 + first].tolist())
        if end is None:
            return rows
        self.is_looping = True
        return rows[: end + 1]

    def _states_in(self, rows: np.ndarray) -> list[list[int]]:
        """Return the values of the state columns in each row, [n][C]."""
        return rows[:, 1 + self._family.num_row_words :].tolist()

    def _mark_words(self, reply: ReplyState, before: Sequence[int]) -> None:
        """Record the word that begins in the newest row, before which the family's state was `before`."""
        column = self._word_column
        if column is None or reply.own_values[column] == before[column]:
            return
        number = before[column]
        if self.track is None:
            self.words.mark_token(number, self._text, reply.num_frames - 1)
        elif tokens := self.track.word_tokens(number):
            self.words.mark_taken(tokens, reply.position - 1 - reply.audio_start)

    def _pauses_in(self, rows: np.ndarray) -> tuple[tuple[float, ...], ...]:
        """Return the pause probabilities in the next rows, except the reply's first and last row."""
        skipped = 0 if self._has_rows else 1
        self._has_rows = True
        rows = rows[skipped:][rows[skipped:, 1] != self._family.end_of_reply]
        of_frames = latents_of(rows[:, 1 + self._family.layout.num_output_streams : 1 + self._family.num_row_words])
        return tuple(tuple(row) for row in of_frames.astype(float).round(4).tolist())

    def _push_interleaved(self, rows: np.ndarray) -> Iterator[LMChunk]:
        text = ""
        audio = self._family.layout.audio[0]
        is_code = (rows[:, 1] >= audio.start) & (rows[:, 1] < audio.stop)
        for state in self._states_in(rows[-1:]):
            self.reply.move(self.reply.position + len(rows), state)
        for token_id, is_audio in zip(rows[:, 1].tolist(), is_code.tolist(), strict=True):
            text += "" if is_audio else self._read(token_id)
        if text:
            yield self._chunk(INTERLEAVED, text=text)
        self._frames.push(rows[is_code][:, 1:])
        yield from self._due_chunks(INTERLEAVED)

    def _due_chunks(self, segment: Segment) -> Iterator[LMChunk]:
        """Yield chunks of the frames that the pacer releases.

        If all frames of a chunk are omitted, no chunk is sent, and a later chunk reports its guidance changes.
        """
        while size := self._pacer.num_to_send(self._num_ready - self._num_held):
            if (codes := self._frames.pop_frames(size)) is not None:
                yield self._chunk(segment, self._pop_text(size), codes)

    def _pop_text(self, num_frames: int) -> str:
        """Remove and return the text that accompanies the next frames (empty if the text has rows of its own)."""
        return "".join(self._frame_texts.popleft() for _ in range(min(num_frames, len(self._frame_texts))))

    def _read(self, token_id: int) -> str:
        return self._reader.end() if token_id == self._family.end_of_reply else self._reader.push(token_id)

    @property
    def _num_ready(self) -> int:
        """Number of complete frames of the reply that have not been sent yet."""
        if self.reply.audio_end < 0:
            return self._frames.num_ready
        return min(self._frames.num_ready, self.reply.num_frames - self.num_sent_frames)

    @property
    def _num_held(self) -> int:
        """Number of ready frames near the limit. They belong to the last chunk, which the decoder may shorten."""
        num_left = self.reply.max_frames - self.num_sent_frames - self._num_ready
        if self.loops is not None:
            num_left = min(num_left, self.loops.num_left // self._family.rows_per_frame)
        return max(0, min(self._num_ready, self._max_cut_frames - num_left))

    @property
    def _max_cut_frames(self) -> int:
        """Number of frames before the limit in which the decoder may end the audio.

        The limit of an interleaved reply is not known before the last frame.
        """
        is_interleaved = self.reply.task.segments[0] is INTERLEAVED
        num_frames = min(ceil(CUT_S * self._family.frame_rate), self._pacer.policy.steady_frames)
        return 1 if is_interleaved else max(1, num_frames)

    def _sent(self, chunk: Chunk, codes: np.ndarray | None) -> LMChunk:
        """Return `chunk` with codes [K, T] for the decoder and, if requested, the codes of all streams.

        The reply's first codes begin with its silent frames.
        """
        if codes is not None and not self._has_codes:
            self._has_codes = True
            early = self.early
            self.early = None
            samples = b"" if early is None else samples_of(early, codes[self._codebooks] if self._with_codes else codes)
            chunk = replace(chunk, num_silent_frames=self._num_silent, samples=samples)
        if codes is None or not self._with_codes:
            return LMChunk(chunk, codes)
        return LMChunk(replace(chunk, output_codes=tuple(map(tuple, codes.tolist()))), codes[self._codebooks])

    def _chunk(self, segment: Segment, text: str = "", codes: np.ndarray | None = None) -> LMChunk:
        before = 0 if codes is None else self.num_sent_frames
        marks = (*self._timed_words(), *self._spoken_words(before))
        changes = self._changes_before(self.num_sent_frames)
        pauses = self._pauses
        self._pauses = ()
        chunk = Chunk(self.num_chunks, segment, text, marks, guidance_changes=changes, voice=self.voice, pauses=pauses)
        chunk = self._with_head(chunk)
        self.num_chunks += 1
        return self._sent(chunk, codes)

    def _spoken_words(self, before: int = sys.maxsize) -> Iterator[WordMark]:
        """Yield the spoken words that begin before a frame and have not been sent, with their frames as sent."""
        for mark in self.words.pop(before):
            yield replace(mark, frame=self._sent_frame(mark.frame))

    def _sent_frame(self, frame: int) -> int:
        """Return a frame's index in the sent audio, which lacks the silent frames at the beginning."""
        return max(0, frame - self._num_silent)

    def _timed_words(self) -> list[WordMark]:
        """Return the words of a transcript whose times have become known since the last chunk."""
        times = self._times
        self._times = []
        return times + (self._reader.pop_marks() if isinstance(self._reader, TimedReader) else [])

    def _changes_before(self, frame: int) -> tuple[GuidanceChange, ...]:
        """Return the guidance changes before `frame` that have not been reported yet.

        Their frame indices do not count omitted and silent frames.
        """
        changes = [change for change in self.guidance_changes[self._num_reported :] if change.frame < frame]
        self._num_reported += len(changes)
        kept = self._frames.kept_index
        return tuple(replace(change, frame=self._sent_frame(kept(change.frame))) for change in changes)

    def finish(self, report: Report) -> LMChunk:
        """Return the last chunk, which contains the remaining text and frames, and the report."""
        segment = Segment.TAIL if self.reply.audio_start >= 0 else self.reply.segment
        text = "" if segment is Segment.TAIL else self._reader.end()
        if self._family.has_text_beside_codes:
            text = self._pop_text(self._num_ready) + self._reader.end()
        codes = self._frames.pop_frames(self._num_ready) if self._num_ready > 0 else None
        changes = self._changes_before(sys.maxsize)
        marks = (*self._timed_words(), *self._spoken_words())
        is_full = self.reply.num_frames >= self.reply.max_frames
        is_cut = report.finish_reason != STOP and (is_full or self.is_looping)
        num_cut = self._max_cut_frames if is_cut else 0
        last = Chunk(self.num_chunks, segment, text, marks, True, report, changes, voice=self.voice)
        last = replace(last, num_cut_frames=num_cut)
        return self._sent(self._with_head(last), codes)

    def _with_head(self, chunk: Chunk) -> Chunk:
        """Add to a chunk the text that the model has read and, if it is the reply's first, `alignment` and `sound`."""
        chunk = replace(chunk, alignment=self.alignment, sound=self.sound)
        reader = self._reader
        if self._with_progress and isinstance(reader, TimedReader):
            chunk = replace(chunk, begun=tuple(reader.pop_begun()), num_transcribed=reader.num_transcribed)
        if isinstance(reader, PassageReader):
            chunk = replace(chunk, passages=tuple(reader.pop_passages()))
        self.alignment = self.sound = None
        return chunk
