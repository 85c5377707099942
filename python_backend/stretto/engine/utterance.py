"""Front-end side of one reply: input sent to the engine, and rows converted to chunks."""

import asyncio
import sys
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from stretto.engine.client import EngineClient
from stretto.engine.protocol import GUIDANCE_ON
from stretto.engine.reply_rules import ReplyState
from stretto.engine.tracks import Track
from stretto.engine.word_times import WordTimes
from stretto.errors import Closing, InvalidRequest, StrettoError
from stretto.families.base import Family
from stretto.families.text import TextCodec, TimedReader
from stretto.records.chunk import Alignment, Chunk, GuidanceChange, LMChunk, Report, Sound, WordMark
from stretto.records.prompt import Prompt, SourceWord
from stretto.streams.chunking import Pacer
from stretto.streams.layout import Segment, StreamLayout, Undelayer, latents_of


class FrameCodes:
    """Converts a reply's rows to frames: undoes the delay pattern and subtracts each codebook's first id.

    Args:
        family: Family of the model.
        streams: Streams whose codes are returned.

    Attributes:
        num_taken: Number of frames requested from `pop_frames` so far.
    """

    def __init__(self, family: Family, streams: Sequence[int]):
        layout = family.layout
        self._streams, self._leaves_out = np.asarray(streams), family.leaves_out_extra
        self._rows_per_frame, places = family.rows_per_frame, layout.frame_codec.places
        self._are_latents, self._frame = layout.latents is not None, layout.audio[0].start
        lines = [] if self._are_latents else places or [layout.audio[s] for s in streams]
        self._first_ids = np.asarray([ids.start for ids in lines])
        self._num_ids = np.asarray([len(ids) for ids in lines])
        self._no_codes = [layout.extra[s] for s in streams] if lines and layout.extra else [()] * len(lines)
        self._undelayer = Undelayer(tuple(layout.delays[s] for s in streams))
        self._is_frame = np.zeros(0, np.bool_)  # for each row pushed, if frames are latents
        self._left_out: list[int] = []  # indices of omitted frames
        self._filter = None if family.mechanism.frame_filter is None else family.mechanism.frame_filter()
        self.num_taken = 0

    def push(self, rows: np.ndarray) -> None:
        """Append rows of all output streams, [n, S]."""
        self._undelayer.push(rows[:, self._streams])
        if self._are_latents and self._leaves_out:
            self._is_frame = np.append(self._is_frame, rows[:, 0] == self._frame)

    @property
    def num_ready(self) -> int:
        """Number of complete frames that `pop_frames` has not returned yet."""
        return self._undelayer.num_ready // self._rows_per_frame

    def pop_frames(self, num_frames: int) -> np.ndarray | None:
        """Return the codes of the next `num_frames` frames, or their latents as words (`words_of`): int32 [K, n].

        An id that is not a code, such as a pad, is replaced by the nearest code. Families with `leaves_out_extra` omit
        frames with such ids instead, families with latents omit rows with marks, and those that a
        mechanism filters. If frames are omitted, n is less than `num_frames`; if none remains, the result is None.

        Raises:
            StrettoError: If a latent is not finite.
        """
        first = self.num_taken
        self.num_taken += num_frames
        ids = self._undelayer.pop_frames(num_frames * self._rows_per_frame)
        if self._are_latents:
            if not np.isfinite(latents_of(ids)).all():
                raise StrettoError(
                    f"frames {first} to {first + num_frames - 1}: expected finite latents, got NaN or infinity"
                )
            if not self._leaves_out:
                return ids.astype(np.int32)
            is_kept, self._is_frame = np.split(self._is_frame, [num_frames])
            return self._kept(ids.astype(np.int32), is_kept, first)
        if self._rows_per_frame > 1:
            ids = ids.reshape(num_frames, -1).T
        codes = ids - self._first_ids[:, None]
        is_code = (codes >= 0) & (codes < self._num_ids[:, None])
        for stream, frame in np.argwhere(~is_code):
            found = int(ids[stream, frame])
            assert found in self._no_codes[stream], (
                f"frame {first + frame}: id {found} of stream {stream} is not a code"
            )
        codes = codes.clip(0, self._num_ids[:, None] - 1).astype(np.int32)
        if not self._leaves_out and self._filter is None:
            return codes
        is_kept = is_code.all(0) if self._leaves_out else np.ones(codes.shape[1], np.bool_)
        return self._kept(codes, is_kept if self._filter is None else is_kept & self._filter(codes), first)

    def _kept(self, codes: np.ndarray, is_kept: np.ndarray, first: int) -> np.ndarray | None:
        """Return the kept codes [K, n], or None; `first` is the index of the first frame."""
        self._left_out += (first + np.flatnonzero(~is_kept)).tolist()
        return codes[:, is_kept] if is_kept.any() else None

    def kept_index(self, frame: int) -> int:
        """Return the number of kept frames before `frame`, which is also its index among kept frames."""
        return frame - bisect_left(self._left_out, frame)


PATIENCE_S = 30.0  # between two writes; a blocked reply occupies KV blocks
LONGEST_S = 600.0  # from the start to the last write; also limits clients that keep writing empty text


class TextFeed:
    """Streamed text of one reply, whose ids are sent to the engine in order.

    The reply is aborted if nothing is written for `patience_s`, or if the text is not complete after `longest_s`.

    Attributes:
        track: Text so far; None for live audio.
        field: Name of the input in error messages.
        what: Description of the input in error messages.

    Args:
        engine: Client of the engine.
        request_id: Id of the request.
        track: Text sent with the prompt; further ids are appended to it. None for live audio.
        room: Maximum number of further ids, not counting the end id.
        patience_s: Maximum time between two writes, in seconds.
    """

    field = what = "text"
    longest_s = LONGEST_S

    def __init__(
        self, engine: EngineClient, request_id: str, track: Track | None, room: int, patience_s: float = PATIENCE_S
    ):
        self._engine, self._request_id, self.track, self._room = engine, request_id, track, room
        self._patience_s, self._begun_s = patience_s, time.monotonic()
        self._waiting = np.zeros(0, np.int32)
        self._is_complete = self._is_last_sent = self._has_begun = self._has_ended = False
        self._failure: StrettoError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wait()

    def write(self, ids: Sequence[int], is_last: bool) -> None:
        """Append ids; if `is_last` is True, the last id is the text's end id.

        Raises:
            InvalidRequest: If the text is already complete, or becomes too long.
        """
        if self._is_complete:
            raise InvalidRequest("text", "no more text, because it is complete", f"{len(ids)} tokens")
        if len(ids) - is_last > self._room:
            raise InvalidRequest("text", f"at most {self._room} more tokens", f"{len(ids) - is_last} tokens")
        self._append(ids, is_last)

    def _append(self, ids: Sequence[int] | np.ndarray, is_last: bool) -> None:
        self._room -= len(ids)
        if self.track is not None:
            self.track.extend(ids, is_last)
        self._waiting = np.concatenate([self._waiting, np.asarray(ids, np.int32)])
        self._is_complete = is_last
        self._wait()
        if self._has_begun:
            self._send()

    def begin(self) -> None:
        """Send the ids written so far, once the engine has accepted the request."""
        if not self._has_begun:
            self._has_begun = True
            self._send()

    def is_awaited(self, num_rows: int, reply: ReplyState | None = None) -> bool:
        """Return True if a reply of `num_rows` rows in the state `reply` can continue only when more text arrives."""
        return self.track is not None and self.track.first_row + num_rows > self.track.num_known(reply)

    def check(self) -> None:
        """Raise the error that aborted the reply, if any, for example because the input stalled."""
        if self._failure is not None:
            raise self._failure

    def end(self) -> None:
        """Stop the timer, because the reply has ended."""
        self._is_complete = self._has_ended = True
        if self._timer is not None:
            self._timer.cancel()

    @property
    def _left_s(self) -> float:
        return self._begun_s + self.longest_s - time.monotonic()

    def _wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_complete:
            patience_s = min(self._patience_s, self._left_s)
            self._timer = asyncio.get_running_loop().call_later(patience_s, self._give_up)

    def _give_up(self) -> None:
        if self._left_s <= 0:
            expected, got = f"the complete {self.what} within {self.longest_s:g} s of its start", "only a part"
        else:
            expected, got = f"more {self.what}, or its end, within {self._patience_s:g} s", "none"
        self.abort(InvalidRequest(self.field, expected, got))

    def abort(self, failure: StrettoError) -> None:
        """Abort the reply; `check` then raises `failure`."""
        self._failure = self._failure or failure
        self._engine.abort(self._request_id)

    def _send(self) -> None:
        ids, self._waiting = self._waiting, np.zeros(0, np.int32)
        if not self._engine.has(self._request_id) or self._is_last_sent or not (len(ids) or self._is_complete):
            return
        self._is_last_sent = self._is_complete
        self._engine.append(self._request_id, ids, self._is_last_sent)


IDLE_S = 60.0  # between two parts of a live session
MAX_LAG_S = 5.0


class FrameFeed(TextFeed):
    """Live audio of one session, as codes of frames that the reply reads row by row.

    Frames are due when they arrive, but no faster than they are played. A file that arrives all at once is therefore
    not late. The session is aborted if the reply lags by more than MAX_LAG_S.

    Args:
        engine: Client of the engine.
        request_id: Id of the request.
        width: Number of ids per frame.
        room: Maximum number of frames. The reply ends after the last one.
        frame_s: Duration of a frame in seconds.
        note_tick: Function that is called for each frame that is read, with its lateness and `frame_s`, in seconds.
        clock: Function that returns the time in seconds.

    Attributes:
        num_frames: Number of frames that have arrived.
        seconds: Duration of the input in seconds.
    """

    field, what = "pcm_in", "audio"

    def __init__(
        self,
        engine: EngineClient,
        request_id: str,
        width: int,
        room: int,
        frame_s: float,
        note_tick: Callable[[float, float], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__(engine, request_id, None, room * width, IDLE_S)
        self.longest_s = room * frame_s + IDLE_S
        self._width, self._frame_s, self._note_tick, self._clock = width, frame_s, note_tick, clock
        self._due: deque[float] = deque()  # due times of the frames that the reply has not read
        self._last_due_s = 0.0
        self.num_frames = 0
        self.seconds = 0.0
        self._moved = asyncio.Event()

    def write_frames(self, frames: np.ndarray, is_last: bool, seconds: float) -> None:
        """Append frames; frames beyond the maximum are dropped, because the reply ends before them.

        A call without frames does not restart the timer, unless it completes the audio.

        Args:
            frames: Ids of the frames, int32 [n, K].
            is_last: True if these frames complete the audio.
            seconds: Duration of the whole input so far, in seconds.
        """
        self.check()
        is_input = len(frames) > 0 or is_last
        frames, now = frames[: self._room // self._width], self._clock()
        for _ in range(len(frames)):
            self._last_due_s = max(now, self._last_due_s + self._frame_s)
            self._due.append(self._last_due_s)
        self.num_frames, self.seconds = self.num_frames + len(frames), seconds
        if self._due and now - self._due[0] > MAX_LAG_S:
            behind_s = now - self._due[0]
            self.abort(
                Closing(f"the session is {behind_s:.1f} s behind its audio, of at most {MAX_LAG_S:g} s; try again")
            )
        self.check()
        if is_input:
            self._append(frames.reshape(-1), is_last)

    def note_rows(self, num_rows: int) -> None:
        """Record that the reply has `num_rows` rows; the first one precedes the first frame."""
        now = self._clock()
        while len(self._due) > max(0, self.num_frames - (num_rows - 1)):
            self._note_tick(max(0.0, now - self._due.popleft()), self._frame_s)
        self._moved.set()

    @property
    def lag_frames(self) -> int:
        """Number of frames that have arrived but that the reply has not read."""
        return len(self._due)

    async def wait_until_read(self, max_ahead: int) -> int:
        """Wait until at most `max_ahead` frames are unread or the reply ends; return how many are unread."""
        while len(self._due) > max_ahead and self._failure is None and not self._has_ended:
            self._moved.clear()
            await self._moved.wait()
        self.check()
        return len(self._due)

    def is_awaited(self, num_rows: int, reply: ReplyState | None = None) -> bool:
        """Return True if a reply of `num_rows` rows can continue only when more audio arrives."""
        return not self._is_complete and num_rows > self.num_frames

    def abort(self, failure: StrettoError) -> None:
        super().abort(failure)
        self._moved.set()

    def end(self) -> None:
        super().end()
        self._moved.set()


class _NoText:
    """Null object used instead of a `TextFeed` for replies without streamed text."""

    def begin(self) -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""

    def end(self) -> None:
        """Do nothing."""


NO_TEXT = _NoText()


# Cached because they are used per row, and enum member access is slow.
TEXT, TRANSITION, INTERLEAVED = Segment.TEXT, Segment.TRANSITION, Segment.INTERLEAVED


def reference_chunk(prompt: Prompt, layout: StreamLayout) -> LMChunk:
    """Return a chunk with the reference frames at the end of a prompt, as codes or, for latents, as words.

    The frames are the decoder's left context for the reply.

    Args:
        prompt: Prompt that ends with the reference frames.
        layout: Stream layout of the family.
    """
    streams = layout.codebook_streams
    codes = np.stack([prompt.reference_ids(stream, layout.delays[stream]) for stream in streams])
    if not layout.latents:
        codes = codes - np.array([[layout.audio[stream].start] for stream in streams])
    return LMChunk(Chunk(0, Segment.AUDIO, num_reference_frames=codes.shape[1]), codes.astype(np.int32))


def first_chunk(prompt: Prompt, family: Family) -> LMChunk | None:
    """Return the chunk that the decoder needs before the chunks generated by the reply, or None.

    It contains the frames of a voice reference or, if a model in the decoder fills in codebooks, all prompt rows.
    """
    if family.mechanism.num_filled_codebooks:
        return LMChunk(Chunk(0, Segment.AUDIO, is_prompt=True), np.ascontiguousarray(prompt.rows.T, np.int32))
    if prompt.num_reference_rows:
        return reference_chunk(prompt, family.layout)
    return None


class Utterance:
    """Converts a reply's rows to chunks. Text is sent at the end of a word, frames when the pacer permits.

    Args:
        reply: State of the reply.
        words: Words of the prompt, for word timestamps.
        codec: Text codec of the family.
        pacer: Pacer that decides when frames are sent.
        with_codes: True to include the codes of all output streams in the chunks.
        with_pauses: True to send a chunk with pause probabilities for each frame.
        with_progress: True to send a chunk for each row of a transcript, with the words that are complete.
        sources: For each of `words`, the word of the request's text; empty if unknown.

    Attributes:
        guidance_changes: All guidance changes so far, in order of their frames.
        words: Times of the words to speak.
        num_chunks: Number of chunks so far, including a chunk sent before the reply's own (see `first_chunk`).
        voice: Index of the codec's voice, sent with each chunk.
        alignment: Request for word times, sent with the first chunk; None if not requested.
        sound: Recording of the voice, sent with the first chunk; None if the decoder needs none.
        track: Track of the reply, if the family's mechanism reports when words begin.
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
        family, self.reply = reply.rules.family, reply
        self._family, self._codec = family, codec
        self.words = WordTimes(words, sources, codec, reply.task.name)
        self._pacer, self._with_codes, self._with_pauses = pacer, with_codes, with_pauses
        self._with_progress = with_progress
        self._pauses: tuple[tuple[float, ...], ...] = ()  # for frames that have not been sent
        self._has_rows = False
        layout = family.layout
        streams = list(range(layout.num_output_streams) if with_codes else layout.codebook_streams)
        places = range(layout.num_codebooks) if layout.frame_codec.places else None
        self._codebooks = list(places or [streams.index(stream) for stream in layout.codebook_streams])
        self._frames = FrameCodes(family, streams)
        self._reader = codec.reader(reply.task.name)
        self._text: list[int] = []
        self._frame_texts: deque[str] = deque()  # for rows with text beside codes whose frames have not been sent
        self._times: list[WordMark] = []  # words of a transcript that have not been sent
        self.guidance_changes: list[GuidanceChange] = []
        self._num_reported = 0  # number of changes already reported
        self.num_chunks = self.voice = 0
        self.alignment: Alignment | None = None
        self.sound: Sound | None = None
        self.track: Track | None = None

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
        for part in np.split(rows, len(rows)) if self._pacer.policy.deterministic else [rows]:
            yield from self._push(part)

    def _push(self, rows: np.ndarray) -> Iterator[LMChunk]:
        reply = self.reply
        if reply.segment is INTERLEAVED:
            yield from self._push_interleaved(rows)
            return
        text, num_audio_rows, segment = "", 0, TEXT
        for (mark, token_id), state in zip(rows[:, :2].tolist(), self._states_in(rows), strict=True):
            segment, pointer, own = reply.segment, reply.pointer, reply.own
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
                    self._mark_words(reply, pointer, own)
        self._times += self._reader.pop_marks() if isinstance(self._reader, TimedReader) else []
        if self._with_pauses:
            self._pauses += self._pauses_in(rows)
        if text or self._times or self._pauses or self._with_progress:
            yield self._chunk(TEXT, text=text)
        if num_audio_rows:
            audio = rows[-num_audio_rows:, 1:]
            if given_ids := reply.rules.given_ids:
                audio = audio[~np.isin(audio[:, 0], given_ids)]
            self._frames.push(audio)
            yield from self._due_chunks(segment)

    def _states_in(self, rows: np.ndarray) -> list[list[int]]:
        """Return the state columns of each row, [n][C]."""
        return rows[:, 1 + self._family.num_row_words :].tolist()

    def _mark_words(self, reply: ReplyState, pointer: int, own: Sequence[int]) -> None:
        """Record the word that begins in the newest row, before which `pointer` and `own` were as given."""
        if reply.pointer > pointer:
            self.words.mark_entry(reply.pointer - 1, self._text, reply.num_frames - 1)
        if self.track is not None and (tokens := self.track.begun_word(own, reply.own)):
            self.words.mark_taken(tokens, reply.position - 1 - reply.audio_start)

    def _pauses_in(self, rows: np.ndarray) -> tuple[tuple[float, ...], ...]:
        """Return the pause probabilities in the next rows; the reply's first and last row have none."""
        skipped, self._has_rows = 0 if self._has_rows else 1, True
        rows = rows[skipped:][rows[skipped:, 1] != self._family.end_of_reply]
        of_frames = latents_of(rows[:, 1 + self._family.layout.num_output_streams : 1 + self._family.num_row_words])
        return tuple(tuple(row) for row in of_frames.astype(float).round(4).tolist())

    def _push_interleaved(self, rows: np.ndarray) -> Iterator[LMChunk]:
        text, audio = "", self._family.layout.audio[0]
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
        """Remove and return the text that accompanies the next frames; empty if the text has rows of its own."""
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
        """1 if the last frame that fits is ready. It belongs to the last chunk, so that the decoder can fade it out."""
        is_last = self.num_sent_frames + self._num_ready >= self.reply.max_frames
        return int(is_last and self._num_ready > 0 and not self._pacer.policy.has_rest)

    def _sent(self, chunk: Chunk, codes: np.ndarray | None) -> LMChunk:
        """Return `chunk` with codes [K, T] for the decoder and, if requested, the codes of all streams."""
        if codes is None or not self._with_codes:
            return LMChunk(chunk, codes)
        return LMChunk(replace(chunk, output_codes=tuple(map(tuple, codes.tolist()))), codes[self._codebooks])

    def _chunk(self, segment: Segment, text: str = "", codes: np.ndarray | None = None) -> LMChunk:
        before = 0 if codes is None else self.num_sent_frames
        marks = (*self._timed_words(), *self.words.pop(before))
        changes = self._changes_before(self.num_sent_frames)
        pauses, self._pauses = self._pauses, ()
        chunk = Chunk(self.num_chunks, segment, text, marks, guidance_changes=changes, voice=self.voice, pauses=pauses)
        chunk = self._with_head(chunk)
        self.num_chunks += 1
        return self._sent(chunk, codes)

    def _timed_words(self) -> list[WordMark]:
        """Return the words of a transcript whose times have become known since the last chunk."""
        times, self._times = self._times, []
        return times + (self._reader.pop_marks() if isinstance(self._reader, TimedReader) else [])

    def _changes_before(self, frame: int) -> tuple[GuidanceChange, ...]:
        """Return the guidance changes before `frame` that have not been reported yet.

        Their frame indices do not count omitted frames.
        """
        changes = [change for change in self.guidance_changes[self._num_reported :] if change.frame < frame]
        self._num_reported += len(changes)
        return tuple(replace(change, frame=self._frames.kept_index(change.frame)) for change in changes)

    def finish(self, report: Report) -> LMChunk:
        """Return the last chunk, which contains the remaining text and frames, and the report."""
        segment = Segment.TAIL if self.reply.audio_start >= 0 else self.reply.segment
        text = "" if segment is Segment.TAIL else self._reader.end()
        if self._family.has_text_beside_codes:
            text = self._pop_text(self._num_ready) + self._reader.end()
        codes = self._frames.pop_frames(self._num_ready) if self._num_ready > 0 else None
        changes, marks = self._changes_before(sys.maxsize), (*self._timed_words(), *self.words.pop())
        is_cut = report.finish_reason == "length" and self.reply.num_frames >= self.reply.max_frames
        last = Chunk(self.num_chunks, segment, text, marks, True, report, changes, voice=self.voice, is_cut=is_cut)
        return self._sent(self._with_head(last), codes)

    def _with_head(self, chunk: Chunk) -> Chunk:
        """Return `chunk` with the requested progress and, if it is the reply's first, `alignment` and `sound`."""
        chunk, reader = replace(chunk, alignment=self.alignment, sound=self.sound), self._reader
        if self._with_progress and isinstance(reader, TimedReader):
            chunk = replace(chunk, begun=tuple(reader.pop_begun()), num_transcribed=reader.num_transcribed)
        self.alignment = self.sound = None
        return chunk
