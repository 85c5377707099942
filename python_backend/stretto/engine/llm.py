"""`SpeechLLM`: the Python API of the language model."""

import time
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, aclosing, closing, contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from stretto.config import EngineConfig
from stretto.engine.adapter_table import AdapterTable
from stretto.engine.client import EngineClient, EngineConnection, Output
from stretto.engine.code_loops import CodeLoops
from stretto.engine.feeds import NO_TEXT, FrameFeed, TextFeed
from stretto.engine.permits import Permit, Permits
from stretto.engine.prompt_checks import (
    Capacity,
    check_prompt,
    known_ids,
    max_frames,
    max_words,
    num_text_ids,
)
from stretto.engine.protocol import SharedStats, Trailer, num_guided, read_rows, sampling_fields
from stretto.engine.reply_rules import UNKNOWN, ReplyState, SegmentRules
from stretto.engine.reply_stats import FrameStats, Stats
from stretto.engine.utterance import Utterance, first_chunk, num_first_frames
from stretto.errors import InvalidRequest, NoCapacity, StrettoError
from stretto.family.audio_format import AudioFormat, check_audios
from stretto.family.base import Family
from stretto.family.image_format import ImageFormat, check_images
from stretto.family.plugin import config_at, family_at, read_family
from stretto.family.text import StreamedText, load_text_codec
from stretto.records.chunk import LMChunk, Report, last_chunks
from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig
from stretto.streams.chunking import Pacer
from stretto_contract.finish_reasons import FinishReason
from stretto_contract.limits import FairLimit

# Receives hidden states of a prompt [n, H] or None, and new ids of stream 0.
Listener = Callable[[np.ndarray | None, list[int]], None]


class SpeechLLM:
    """Speech language model that generates text and frames of codes with vLLM."""

    def __init__(self, engine: EngineClient, config: EngineConfig, shared: SharedStats):
        record = config_at(config.checkpoint)
        self._engine = engine
        self._shared = shared
        self.family: Family = read_family(record)
        self._text = load_text_codec(self.family, config.checkpoint)
        self._audio_format = AudioFormat.from_config(record)
        self._image_format = ImageFormat.from_config(record)
        self._rules = SegmentRules(self.family, engine.ready.max_model_len)
        self._capacity = Capacity.from_engine(engine)
        self.adapters = AdapterTable(config, engine.call)
        self._stats = Stats()
        self.active: set[str] = set()
        self._texts: dict[str, TextFeed] = {}
        self._sessions: dict[str, FrameFeed] = {}
        self._places = FairLimit(self._capacity.max_sessions(self._rules) if self.family.code_track else 0)
        self._permits = Permits.from_config(config, engine, shared)
        self._decodes_first = config.first_chunk is not None

    @classmethod
    async def start(cls, config: EngineConfig) -> "SpeechLLM":
        """Start the engine from a coroutine (see `launch`)."""
        return cls.launch(config)

    @classmethod
    def launch(cls, config: EngineConfig) -> "SpeechLLM":
        """Start the engine in separate processes.

        The engine is bound to the event loop in which it is first used.

        Raises:
            ValueError: If an option is not supported.
            CheckpointError: If the checkpoint or an adapter is unusable.
            RuntimeError: If the engine fails to start; the log has the reason.
        """
        return StartingLLM(config).wait()

    def stats(self) -> dict[str, float]:
        """Return the current metrics of the front end and the schedulers, keyed by name."""
        self._stats.live_lag_frames = max((session.lag_frames for session in self._sessions.values()), default=0)
        return asdict(self._stats) | asdict(self._shared.read())

    def has_work(self) -> bool:
        """Return True if the engine has an unfinished request that is not blocked until more text or audio arrives."""
        shared = self._shared.read()
        waiting = shared.replies_without_words + shared.replies_without_frames
        return self._engine.num_requests > waiting

    def shutdown(self) -> None:
        """Stop the engine's processes."""
        self._engine.shutdown()

    @property
    def parts(self) -> "tuple[SpeechLLM, ...]":
        """All models with engines of their own, here only this model."""
        return (self,)

    @property
    def engine_pids(self) -> list[int]:
        """Pids of this model's engine processes."""
        return self._engine.started.pids

    def text_stream(self) -> StreamedText:
        """Return an incremental tokenizer for streamed text, or raise InvalidRequest if the model has none."""
        if self._text.stream is None:
            raise InvalidRequest(
                "options.text_mode", f"whole ({self.family.name} does not support streamed text)", "open"
            )
        return self._text.stream()

    def max_words(self, prompt: Prompt) -> int:
        """Return the maximum number of further token ids of a streamed text, not counting the end id."""
        return max_words(prompt, self._rules) - num_text_ids(prompt, self._rules)

    async def write(self, request_id: str, ids: Sequence[int], is_last: bool = False) -> None:
        """Append token ids to the streamed text of a reply in progress.

        Args:
            request_id: Id of a request whose prompt has `is_open` set.

        Raises:
            InvalidRequest: If there is no such reply, its text is complete or too long, or an id is invalid.
        """
        if request_id not in self._texts:
            raise InvalidRequest("request_id", "the id of a reply whose streamed text is open", request_id)
        end = (self.family.text_track.end_id,) if is_last and self.family.text_track else ()
        self._texts[request_id].write([*known_ids(ids, self._rules), *end], is_last)

    async def write_frames(
        self, request_id: str, frames: np.ndarray, is_last: bool, seconds: float, max_ahead: int
    ) -> tuple[int, int]:
        """Append frames to a live session's audio, and wait until the reply has read almost all of them.

        Args:
            request_id: Id of a request whose prompt has `is_open` set, in a family whose replies read given codes.
            frames: Ids of the frames, int32 [n, K].
            seconds: Duration of the whole input so far, in seconds.
            max_ahead: Maximum number of unread frames when this method returns.

        Returns:
            The number of frames in the session, and how many of these the reply has not read yet.

        Raises:
            InvalidRequest: If there is no such session, or an id is invalid.
            Closing: If the reply is too far behind its audio; the session ends.
        """
        feed = self._sessions.get(request_id)
        if feed is None:
            raise InvalidRequest("session.id", "the id of an open session", request_id)
        size = self.family.layout.vocab_size
        track = self.family.code_track
        assert track is not None, "only such families have sessions"
        if frames.shape[1:] != (len(track.streams),) or (frames.size and not 0 <= frames.min() <= frames.max() < size):
            raise InvalidRequest("frames", f"ids [n, {len(track.streams)}] in [0, {size})", f"{list(frames.shape)}")
        feed.write_frames(frames, is_last, seconds)
        self._stats.live_frames_total += len(frames)
        return feed.num_frames, await feed.wait_until_read(max_ahead)

    @contextmanager
    def session_place(self, host: str) -> Iterator[None]:
        """Reserve capacity for a live session of `host` during the `with` block, or raise NoCapacity if there is none.

        Sessions are shared fairly among hosts (`FairLimit`).
        """
        with self._places.reserving(host) as is_left:
            if not is_left:
                self._stats.live_refused_total += 1
                total = self._places.held
                num_of_host = self._places.held_by(host)
                raise NoCapacity(f"{total} sessions are open, {num_of_host} of them from this host, try again")
            yield

    def end_session(self, request_id: str, failure: StrettoError) -> None:
        """End a live session with an error, if it is open."""
        if request_id in self._sessions:
            self._sessions[request_id].abort(failure)

    async def generate(
        self, prompt: Prompt, request_id: str | None = None, pacer: Pacer | None = None, host: str = ""
    ) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of one reply, the last of which contains the report.

        Closing the iterator aborts the reply.

        Args:
            request_id: Unique id; if None, a random id is used.
            pacer: Pacer that decides when frames are sent; None assumes an infinitely fast decoder.
            host: Client host. Hosts share the engine fairly.

        Raises:
            InvalidRequest: If the request can never run. It is not queued.
            NoCapacity: If too many requests are in flight. This request is not queued.
        """
        request_id = free_id(request_id, self.active)
        prompt = self.prepare(prompt)
        with self.place(prompt, request_id, host) as permit:
            async with aclosing(self.reply_chunks(prompt, permit, pacer)) as chunks:
                async for chunk in chunks:
                    yield chunk

    def prepare(self, prompt: Prompt) -> Prompt:
        """Return a prompt ready for `place`, with a seed, or raise InvalidRequest if it can never run."""
        prompt = check_prompt(prompt, self._rules, self._capacity)
        check_audios(prompt, self._audio_format)
        check_images(prompt, self._image_format)
        return replace(prompt, sampling=prompt.sampling.with_seed())

    @contextmanager
    def place(self, prompt: Prompt, request_id: str, host: str) -> Iterator[Permit]:
        """Reserve a permit for a reply, and its adapter, during the `with` block.

        Raises:
            InvalidRequest: If there is no such adapter.
            NoCapacity: If no permit is free.
        """
        is_guided = prompt.sampling.has_pair
        self.active.add(request_id)
        self._stats.active += 1
        self._stats.pairs += is_guided
        try:
            with (
                self.adapters.leased(prompt.adapter) as adapter,
                self._permits.acquire(request_id, 1 + is_guided, _is_timed(prompt, self.family), host) as permit,
            ):
                permit.adapter = adapter
                yield permit
        finally:
            self.active.discard(request_id)
            self._texts.pop(request_id, NO_TEXT).end()
            if self._sessions.pop(request_id, None) is not None:
                self._stats.live_sessions -= 1
            self._stats.active -= 1
            self._stats.pairs -= is_guided

    def open_text(self, prompt: Prompt, request_id: str, **limits_s: float) -> TextFeed:
        """Register a request whose text is still being written, and return the feed for its further text.

        Args:
            limits_s: Times of a `TextFeed` that differ from the defaults.
        """
        text = self._rules.track(len(prompt.rows), prompt.track, is_open=True)
        feed = TextFeed(self._engine, request_id, text, self.max_words(prompt), **limits_s)
        self._texts[request_id] = feed
        return feed

    def _open_feed(self, prompt: Prompt, request_id: str) -> None:
        """Register a request whose text or audio is still arriving; raise NoCapacity if too many sessions are open."""
        track = self.family.code_track
        if track is None:
            self.open_text(prompt, request_id)
            return
        if len(self._sessions) >= self._places.limit:
            self._stats.live_refused_total += 1
            raise NoCapacity(f"{len(self._sessions)} sessions are open, try again")
        room = max_frames(prompt, self._rules)
        frame_s = 1 / self.family.frame_rate
        session = FrameFeed(self._engine, request_id, len(track.streams), room, frame_s, self._stats.note_tick)
        self._texts[request_id] = self._sessions[request_id] = session
        self._stats.live_sessions += 1

    async def reply_chunks(
        self, prompt: Prompt, permit: Permit, pacer: Pacer | None, listener: Listener | None = None
    ) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of a reply that has been admitted (`place`).

        Args:
            listener: Function that is called with the hidden states of the prompt when they arrive, and with the ids of
                stream 0 in each group of new rows, before their chunks are yielded.
        """
        clock = _Clock(permit)
        request_id = permit.request_id
        if prompt.is_open and request_id not in self._texts:
            self._open_feed(prompt, request_id)
        reply = ReplyState.begin(self._rules, self.family.task(prompt.task), len(prompt.rows))
        reply.max_audio_rows = prompt.sampling.audio.max_rows
        pacer = pacer or Pacer(prompt.delivery.chunking)
        delivery = prompt.delivery
        contents = delivery.with_codes, delivery.with_pauses, delivery.with_progress
        utterance = Utterance(reply, prompt.words, self._text, pacer, *contents, prompt.sources)
        if self.family.drawing.word_column is not None:  # of a feed, to which streamed text is appended
            feed = self._texts.get(request_id)
            utterance.track = feed.track if feed else self._rules.track(len(prompt.rows), prompt.track)
        utterance.voice = prompt.voice
        if prompt.beginning is not None:
            utterance.begin_text(prompt.beginning)
        utterance.loops = loops_of(prompt, self.family)
        frame_stats = FrameStats(self._stats, prompt.sampling)
        if self._decodes_first:
            prompt = replace(prompt, num_first_frames=num_first_frames(prompt))
        fields = sampling_fields(prompt, self._rules, permit.host)
        width = self._rules.num_row_words
        text = self._texts.get(request_id, NO_TEXT)
        session = self._sessions.get(request_id)
        if (first := first_chunk(prompt, self.family)) is not None:
            yield replace(first, chunk=replace(first.chunk, alignment=prompt.alignment, sound=prompt.sound))
            utterance.num_chunks = 1
        else:
            utterance.alignment = prompt.alignment
            utterance.sound = prompt.sound
        begin = _end_at_once if prompt.has_empty_reply else self._engine.generate
        begun = begin(prompt.rows[:, 0].tolist(), fields, request_id, permit.adapter)
        # Audio, images and hidden states, of up to 100 MB, are needed only until they have been sent.
        del fields
        prompt = replace(prompt, audios=(), images=())
        async with aclosing(begun) as outputs:
            async for output in outputs:
                permit.has_begun = True
                text.check()
                text.begin()
                new_ids, trailer = _split(output, request_id)
                rows = read_rows(new_ids, width)
                if listener is not None:
                    listener(output.states, rows[:, 1].tolist())
                elif output.states is not None:
                    utterance.early = output.states
                if not new_ids and trailer is None:
                    continue
                num_rows = reply.position + len(rows) - len(prompt.rows)
                if isinstance(text, TextFeed):
                    pacer.is_stalled = text.is_awaited(num_rows, utterance.reply_after(rows))
                if session is not None:
                    session.note_rows(num_rows)
                for chunk in utterance.push(rows):
                    clock.record(chunk)
                    frame_stats.record(reply.num_frames, utterance.guidance_changes)
                    yield chunk
                if utterance.is_looping:
                    break
        frame_stats.record(reply.num_frames, utterance.guidance_changes)
        self._stats.finished_total += 1
        last = utterance.finish(_report(prompt, utterance, trailer, clock, session))
        for chunk in last_chunks(last) if prompt.alignment else [last]:
            yield chunk


def launch(config: EngineConfig) -> Any:
    """Start the language model of a checkpoint (see `SpeechLLM.launch` for the exceptions).

    Returns:
        A `SpeechLLM`, or an object with the same attributes and methods if the family has a speaker (`Speaker.launch`).
    """
    speaker = family_at(config.checkpoint).mechanism.speaker
    return SpeechLLM.launch(config) if speaker is None else speaker.launch(config)


class StartingLLM:
    """Model whose engine has begun to start (see `SpeechLLM.launch` for the exceptions)."""

    def __init__(self, config: EngineConfig):
        self._config = config
        self._shared = SharedStats.create(config.engine_args.get("data_parallel_size", 1))
        with ExitStack() as failed:
            failed.callback(self._shared.close)
            self._connection = EngineConnection(config, self._shared.path)
            failed.pop_all()

    def wait(self) -> SpeechLLM:
        """Wait until the engine is ready, and return the model."""
        with closing(self._shared):
            self._connection.wait()
        return SpeechLLM(EngineClient(self._connection), self._config, self._shared)

    def stop(self) -> None:
        """Stop the engine, whether or not it is ready."""
        self._shared.close()
        self._connection.close()


def _report(
    prompt: Prompt, utterance: Utterance, trailer: Trailer | None, clock: "_Clock", session: FrameFeed | None
) -> Report:
    reply = utterance.reply
    sampling = prompt.sampling
    if utterance.is_looping:
        trailer = _trailer_of_loop(utterance, sampling)
    assert trailer is not None, "the engine ended a reply without its trailer"
    assert sampling.seed is not None
    return Report(
        finish_reason=_finish_reason(prompt, utterance, trailer),
        num_prompt_rows=len(prompt.rows),
        num_text_tokens=reply.num_text_tokens - reply.num_codes,
        num_frames=reply.num_frames,
        guided_frames=trailer.num_guided_frames,
        guidance_scale=sampling.guidance_scale,
        seed=sampling.seed,
        queue_s=trailer.queue_us / 1e6,
        first_frame_s=clock.first_frame_s or (clock.elapsed_s if reply.num_frames else None),
        total_s=clock.elapsed_s,
        guidance_policy=sampling.policy,
        guidance_changes=tuple(utterance.guidance_changes),
        held_s=trailer.held_us / 1e6,
        input_audio_s=prompt.input_audio_s if session is None else session.seconds,
        num_pieces=prompt.num_pieces,
        untimed_words=utterance.words.untimed,
        language=utterance.language,
        continuation=utterance.continuation,
    )


def loops_of(prompt: Prompt, family: Family) -> CodeLoops | None:
    """Return the detector of repeated codes for a reply, or None if the reply does not read a complete text aloud."""
    task = family.task(prompt.task)
    if prompt.is_open or not task.reads_aloud or not task.has_audio_segment or family.layout.latents is not None:
        return None
    limits = task.speech_limits
    codes = family.layout.audio[family.layout.codebook_streams[0]]
    rate = family.frame_rate * family.rows_per_frame
    max_period = round(limits.period_s * rate)
    if max_period == 0:
        return None
    return CodeLoops(codes, max_period, round((limits.loop_s + prompt.pauses_s) * rate))


def _trailer_of_loop(utterance: Utterance, sampling: SamplingConfig) -> Trailer:
    """Return the statistics of a reply that ends because of repeated codes, without rows after the repetition."""
    num_frames = utterance.reply.num_frames
    switches = [change.frame for change in utterance.guidance_changes]
    num_guided_frames = num_guided(switches, num_frames) if sampling.has_pair else 0
    return Trailer(num_guided_frames, num_preemptions=0, was_cut=1, queue_us=0, held_us=0)


def _finish_reason(prompt: Prompt, utterance: Utterance, trailer: Trailer) -> FinishReason:
    if utterance.is_looping:
        return "repetition"
    if not trailer.was_cut:
        return "stop"
    limits = prompt.sampling
    reply = utterance.reply
    has_all_rows = reply.num_text_tokens >= limits.text.max_rows
    if reply.audio_end != UNKNOWN:
        has_all_rows = reply.audio_end - reply.audio_start >= limits.audio.max_rows
    return "ceiling" if prompt.has_ceiling and has_all_rows else "length"


def free_id(request_id: str | None, active: Collection[str]) -> str:
    """Return the id of a new request (random if None), or raise InvalidRequest if it is in use or not a string."""
    if not isinstance(request_id, str | None):  # otherwise vLLM's engine process would stop accepting requests
        raise InvalidRequest("request_id", "a string", repr(request_id))
    request_id = request_id or uuid.uuid4().hex
    if request_id in active:
        raise InvalidRequest("request_id", "an id that is not in use", request_id)
    return request_id


async def _end_at_once(*_: Any) -> AsyncGenerator[Output, None]:
    """Yield the output of an engine for a reply without rows."""
    yield Output([0] * len(Trailer._fields), "stop")


def _is_timed(prompt: Prompt, family: Family) -> bool:
    """Return True if the admission limit depends on the reply's time to first frame.

    Streamed text and a larger first chunk delay the first frame for reasons outside the server.
    """
    default = prompt.delivery.default_first_frames or family.first_chunk_frames
    return not prompt.is_open and prompt.delivery.chunking.first_frames <= default


class _Clock:
    """Stopwatch of one reply, started with the request."""

    def __init__(self, permit: Permit) -> None:
        self._permit = permit
        self._start = time.perf_counter()
        self.first_frame_s: float | None = None

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start

    def record(self, chunk: LMChunk) -> None:
        """Record the time to first frame for admission control if `chunk` is the first one with codes."""
        if chunk.codes is not None and self.first_frame_s is None:
            self.first_frame_s = self.elapsed_s
            self._permit.record_first_frame(self.first_frame_s)


def _split(output: Output, request_id: str) -> tuple[list[int], Trailer | None]:
    """Return the row ids in `output`, and the statistics trailer (None if the reply has not ended)."""
    if output.finish_reason is None:
        return output.ids, None
    if output.finish_reason not in ("stop", "length"):
        raise StrettoError(f"{request_id}: the engine ended the reply with {output.finish_reason!r}")
    size = len(Trailer._fields)
    return output.ids[:-size], Trailer(*output.ids[-size:])
