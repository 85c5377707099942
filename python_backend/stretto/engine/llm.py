"""`SpeechLLM`: the Python API of the language model.

vLLM's configuration for the engine. The environment is set first; vllm is imported only after that.
"""

import os
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stretto.config import EngineConfig
from stretto.engine.admission import Capacity, Permit, Permits, admit, known_ids, max_frames, max_words, num_text_ids
from stretto.engine.environment import is_cpu_build, prepare_environment, require_batch_invariance
from stretto.errors import InvalidRequest, NoCapacity, StrettoError
from stretto.families.audio_format import AudioFormat, check_audios
from stretto.families.base import Family
from stretto.families.plugin import config_at, family_at
from stretto.records.chunk import LMChunk, Report
from stretto.records.prompt import Prompt
from stretto.streams.chunking import Pacer
from stretto.streams.layout import LatentSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig


SCHEDULER = "stretto.engine.scheduling.scheduler.SpeechScheduler"
WORKER = "stretto.engine.worker.model_state.SpeechWorker"
PROCESS_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
ASYNC_SCHEDULER = "stretto.engine.scheduling.scheduler.SpeechAsyncScheduler"
CAPTURE_SIZES = "max_cudagraph_capture_size", "cudagraph_capture_sizes"
MAX_CAPTURED_ROWS = 512  # vLLM's own limit
LATENT_PART = 8  # latents may take at most 1 / LATENT_PART of the KV cache's memory


def vllm_config(config: EngineConfig) -> "VllmConfig":
    """Return vLLM's configuration for `config`, with the plugin's scheduler, worker and options.

    Raises:
        ValueError: If an option is not supported.
        CheckpointError: If the checkpoint or an adapter cannot be used.
    """
    prepare_environment()
    latents = family_at(config.checkpoint).layout.latents
    is_invariant = config.batch_invariant
    if is_invariant is None:
        is_invariant = latents is not None and not is_cpu_build()
    if is_invariant:
        require_batch_invariance()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    from stretto.engine import adapters
    from stretto.engine.adapters import check_config

    folders = config.adapter_folders
    config_at(config.checkpoint)  # rejects keys that make vLLM load code or a model from elsewhere
    arguments = config.engine_args | adapters.lora_arguments(folders)
    paths = {name: str(folder) for name, folder in folders.items()}
    check_latent_steps(config, latents)
    names = "kv_share", "max_waiting", "first_frame_target_s", "live_reserve", "latent_steps"
    ours = {name: getattr(config, name) for name in names}
    ours[adapters.KEY] = paths
    ours = {name: value for name, value in ours.items() if value not in (None, {}, ())}
    if ours:
        arguments["additional_config"] = arguments.get("additional_config", {}) | ours
    if current_platform.is_cpu():
        from stretto.engine.kernels.cpu.products import IR_OP_PRIORITY

        arguments.setdefault("kernel_config", {"ir_op_priority": IR_OP_PRIORITY})
    else:
        arguments |= captured_rows(config)
        if latents is not None:  # by default, attention would multiply float32 in reduced precision (TF32)
            os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    wants_async = arguments.pop("async_scheduling", not current_platform.is_cpu())
    arguments.setdefault("use_tqdm_on_load", False)  # no progress bar in the log
    args = AsyncEngineArgs(
        model=str(config.checkpoint),
        skip_tokenizer_init=True,
        scheduler_cls=ASYNC_SCHEDULER if wants_async else SCHEDULER,
        async_scheduling=wants_async,
        worker_cls=WORKER,
        **arguments,
    )
    method = os.environ.get(PROCESS_METHOD)
    built = args.create_engine_config()
    if method is not None:
        os.environ[PROCESS_METHOD] = method  # restore the user's choice, which the CPU platform overwrites
    check_config(built)
    check_latent_table(built, latents)
    adapters.restrict_to_backbone(built, folders)
    # vLLM disables async scheduling on the CPU, where it gains little; tests need it.
    built.scheduler_config.async_scheduling = wants_async
    return built


def check_latent_steps(config: EngineConfig, latents: LatentSpec | None) -> None:
    """Raise ValueError unless all of `latent_steps` are numbers of solver steps that the family permits."""
    permitted = range(0) if latents is None else latents.steps
    for number in config.latent_steps:
        if number not in permitted:
            expected = f"numbers in [{permitted.start}, {permitted[-1]}]" if permitted else "none (frames are codes)"
            raise ValueError(f"latent_steps: expected {expected}, got {number}")


def check_latent_table(config: "VllmConfig", latents: LatentSpec | None) -> None:
    """Check the dtype, and that the table of latents, with an entry per slot and position, is small for the KV cache.

    Args:
        config: vLLM's configuration.
        latents: Latents of the family; None if its frames are codes.

    Raises:
        ValueError: If the dtype is not float32, or the table is larger than an eighth of the KV cache. A cache without
            a fixed size is not checked.
    """
    if latents is None:
        return
    dtype = str(config.model_config.dtype).removeprefix("torch.")
    if dtype != "float32":
        raise ValueError(f"dtype: expected 'float32', because latents are fed back in float32, got {dtype!r}")
    memory = config.cache_config.kv_cache_memory_bytes
    if memory is None:
        return
    num_slots, length = config.scheduler_config.max_num_seqs, config.model_config.max_model_len
    position_bytes = num_slots * latents.num_words * 4  # float32
    if (length + 1) * position_bytes > memory // LATENT_PART:
        longest = max(memory // LATENT_PART // position_bytes - 1, 0)
        raise ValueError(
            f"max_model_len: expected at most {longest} with max_num_seqs {num_slots}, so that latents take at most an"
            f" eighth of kv_cache_memory_bytes ({memory}), got {length}"
        )


def captured_rows(config: EngineConfig) -> dict[str, Any]:
    """Return the maximum number of rows in a CUDA graph as a vLLM argument; empty if the operator has set it.

    vLLM's default is two rows per request. MCTP modules process a window of rows per request and need more.
    """
    arguments, family = config.engine_args, family_at(config.checkpoint)
    bursts = family.bursts
    compilation = arguments.get("compilation_config")
    given = {**arguments, **(compilation if isinstance(compilation, dict) else {})}
    if bursts is None or "max_num_seqs" not in given or any(name in given for name in CAPTURE_SIZES):
        return {}
    return {CAPTURE_SIZES[0]: min(MAX_CAPTURED_ROWS, bursts.window * given["max_num_seqs"])}


prepare_environment()

from vllm.inputs import TokensPrompt  # noqa: E402
from vllm.outputs import RequestOutput  # noqa: E402
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402

from stretto.engine.adapters import Adapters  # noqa: E402
from stretto.engine.admission import FrameStats, Stats  # noqa: E402
from stretto.engine.protocol import STATS_KEY, SharedStats, Trailer, family_of, read_rows, sampling_params  # noqa: E402
from stretto.engine.reply_rules import SegmentRules, SegmentTracker  # noqa: E402
from stretto.engine.utterance import NO_TEXT, FrameFeed, TextFeed, Utterance, first_chunk, last_chunks  # noqa: E402
from stretto.families.text import (  # noqa: E402
    SubwordStream,
    load_text_codec,
)

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class SpeechLLM:
    """Speech language model: generates text and frames of codes on one vLLM engine."""

    def __init__(self, engine: AsyncLLM, config: "VllmConfig", shared: SharedStats):
        self._engine, self._shared = engine, shared
        self.family: Family = family_of(config.model_config.hf_config)
        self._text = load_text_codec(self.family, Path(config.model_config.model))
        self._audio_format = AudioFormat.from_config(config.model_config.hf_config.to_dict())
        self._rules = SegmentRules(self.family, config.model_config.max_model_len)
        self._capacity, self._adapters = Capacity.from_config(config), Adapters.from_config(config)
        self._stats = Stats()
        self._active: set[str] = set()
        self._texts: dict[str, TextFeed] = {}
        self._sessions: dict[str, FrameFeed] = {}
        self._max_sessions = self._capacity.max_sessions(self._rules) if self.family.code_track else 0
        self._permits = Permits.from_config(config, engine, shared)

    @classmethod
    async def start(cls, config: EngineConfig) -> "SpeechLLM":
        """Start the engine from a coroutine; see `launch`."""
        return cls.launch(config)

    @classmethod
    def launch(cls, config: EngineConfig) -> "SpeechLLM":
        """Start the engine in a separate process; raise ValueError for an unsupported configuration.

        The engine is bound to the event loop in which it is first used. The process may be forked from this one, so
        call this before other threads are started and, if possible, before the event loop runs.
        """
        built = vllm_config(config)
        shared = SharedStats.create(built.parallel_config.data_parallel_size)
        assert isinstance(built.additional_config, dict)
        built.additional_config = built.additional_config | {STATS_KEY: str(shared.path)}
        try:
            return cls(AsyncLLM.from_vllm_config(built, disable_log_stats=True), built, shared)
        finally:
            shared.close()

    def stats(self) -> dict[str, float]:
        """Return the current metrics of front end and scheduler, by name."""
        return asdict(self._stats) | asdict(self._shared.read())

    def has_work(self) -> bool:
        """Return True if the engine has an unfinished request that is not waiting for streamed text or live audio."""
        shared = self._shared.read()
        waiting = shared.replies_without_words + shared.replies_without_frames
        return self._engine.get_num_unfinished_requests() > waiting

    def shutdown(self) -> None:
        """Stop the engine and its process."""
        self._engine.shutdown()

    def text_stream(self) -> SubwordStream:
        """Return an incremental tokenizer for streamed text; raise InvalidRequest if the model has none."""
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
            ids: Token ids.
            is_last: True if these ids complete the text.

        Raises:
            InvalidRequest: If there is no such reply, its text is complete or too long, or an id is invalid.
        """
        if request_id not in self._texts:
            raise InvalidRequest("request_id", "the id of a reply whose streamed text is open", request_id)
        end = (self.family.text_track.end_id,) if is_last and self.family.text_track else ()
        await self._texts[request_id].write([*known_ids(ids, self._rules), *end], is_last)

    async def write_frames(
        self, request_id: str, frames: np.ndarray, is_last: bool, seconds: float, max_ahead: int
    ) -> tuple[int, int]:
        """Append frames to the audio of a live session, and wait until the reply has read almost all of them.

        Args:
            request_id: Id of a request whose prompt has `is_open` set, in a family with given codes.
            frames: Ids of the frames, int32 [n, K].
            is_last: True if they complete the audio.
            seconds: Duration of the whole input so far, in seconds.
            max_ahead: Number of unread frames at which this method returns.

        Returns:
            Number of frames of the session, and how many of them the reply has not read.

        Raises:
            InvalidRequest: If there is no such session, or an id is invalid.
            Closing: If the reply is too far behind its audio; the session ends.
        """
        feed = self._sessions.get(request_id)
        if feed is None:
            raise InvalidRequest("session.id", "the id of an open session", request_id)
        size, track = self.family.layout.vocab_size, self.family.code_track
        assert track is not None, "only such families have sessions"
        if frames.shape[1:] != (len(track.streams),) or (frames.size and not 0 <= frames.min() <= frames.max() < size):
            raise InvalidRequest("frames", f"ids [n, {len(track.streams)}] in [0, {size})", f"{list(frames.shape)}")
        await feed.write_frames(frames, is_last, seconds)
        self._stats.live_frames_total += len(frames)
        return feed.num_frames, await feed.wait_until_read(max_ahead)

    def end_session(self, request_id: str, failure: StrettoError) -> None:
        """End a live session with an error, if it is open."""
        if request_id in self._sessions:
            self._sessions[request_id].abort(failure)

    async def generate(
        self, prompt: Prompt, request_id: str | None = None, pacer: Pacer | None = None
    ) -> AsyncGenerator[LMChunk, None]:
        """Yield the chunks of one reply, the last one with the report; closing the iterator aborts the reply.

        Args:
            prompt: Prompt from the preprocessor.
            request_id: Unique id; a random one if None.
            pacer: Decides when frames are sent; None assumes an infinitely fast decoder.

        Raises:
            InvalidRequest: If the request can never run; it is not queued.
            NoCapacity: If too many requests are in flight; this one is not queued.
        """
        if not isinstance(request_id, str | None):  # otherwise vLLM's engine process would stop accepting requests
            raise InvalidRequest("request_id", "a string", repr(request_id))
        request_id = request_id or uuid.uuid4().hex
        if request_id in self._active:
            raise InvalidRequest("request_id", "an id that is not in use", request_id)
        prompt = admit(prompt, self._rules, self._capacity)
        check_audios(prompt, self._audio_format)
        prompt = replace(prompt, sampling=prompt.sampling.with_seed())
        is_guided = prompt.sampling.is_guided
        if prompt.is_open:
            self._open_feed(prompt, request_id)
        self._active.add(request_id)
        self._stats.active += 1
        self._stats.pairs += is_guided
        try:
            with self._permits.acquire(request_id, 1 + is_guided, _is_timed(prompt, self.family)) as permit:
                async with aclosing(self._generate(prompt, permit, pacer)) as chunks:
                    async for chunk in chunks:
                        yield chunk
        finally:
            self._active.discard(request_id)
            self._texts.pop(request_id, NO_TEXT).end()
            if (session := self._sessions.pop(request_id, None)) is not None:
                self._stats.live_late_frames_total += session.num_late
                self._stats.live_sessions -= 1
            self._stats.active -= 1
            self._stats.pairs -= is_guided

    def _open_feed(self, prompt: Prompt, request_id: str) -> None:
        """Accept further text or audio for a request; raise NoCapacity if too many live sessions are open."""
        track = self.family.code_track
        if track is None:
            text = self._rules.track(len(prompt.rows), prompt.track, is_open=True)
            self._texts[request_id] = TextFeed(self._engine, request_id, text, self.max_words(prompt))
            return
        if len(self._sessions) >= self._max_sessions:
            self._stats.live_refused_total += 1
            raise NoCapacity(f"{len(self._sessions)} sessions are open, try again")
        room, frame_s = max_frames(prompt, self._rules), 1 / self.family.frame_rate
        session = FrameFeed(self._engine, request_id, len(track.streams), room, frame_s)
        self._texts[request_id] = self._sessions[request_id] = session
        self._stats.live_sessions += 1

    async def _generate(self, prompt: Prompt, permit: Permit, pacer: Pacer | None) -> AsyncGenerator[LMChunk, None]:
        clock, request_id = _Clock(permit), permit.request_id
        tracker = SegmentTracker(self._rules, self.family.task(prompt.task), len(prompt.rows))
        pacer = pacer or Pacer(prompt.delivery.chunking)
        utterance = Utterance(tracker, prompt.words, self._text, pacer, prompt.delivery.with_codes)
        utterance.voice, frame_stats = prompt.voice, FrameStats(self._stats, prompt.sampling)
        inputs = TokensPrompt(prompt_token_ids=prompt.rows[:, 0].tolist())
        params, adapter = sampling_params(prompt, self._rules), self._adapters.named(prompt.adapter)
        width, text = self.family.layout.num_output_streams, self._texts.get(request_id, NO_TEXT)
        session = self._sessions.get(request_id)
        if (first := first_chunk(prompt, self.family)) is not None:
            yield replace(first, chunk=replace(first.chunk, alignment=prompt.alignment, sound=prompt.sound))
            utterance.num_chunks = 1
        else:
            utterance.alignment, utterance.sound = prompt.alignment, prompt.sound
        async with aclosing(self._engine.generate(inputs, params, request_id, lora_request=adapter)) as outputs:
            async for output in outputs:
                permit.has_begun = True
                text.check()
                await text.begin()
                ids, trailer = _split(output)
                rows = read_rows(ids, width)
                num_rows = tracker.position + len(rows) - len(prompt.rows)
                num_given = tracker.num_given + int(np.isin(rows[:, 1], self._rules.given_ids).sum())
                pacer.is_stalled = text.is_awaited(num_rows, num_given)
                if session is not None:
                    session.note_rows(num_rows)
                for chunk in utterance.push(rows):
                    clock.record(chunk)
                    frame_stats.record(tracker.num_frames, utterance.guidance_changes)
                    yield chunk
        frame_stats.record(tracker.num_frames, utterance.guidance_changes)
        last = utterance.finish(self._report(prompt, utterance, trailer, clock))
        for chunk in last_chunks(last) if prompt.alignment else [last]:
            yield chunk

    def _report(self, prompt: Prompt, utterance: Utterance, trailer: Trailer | None, clock: "_Clock") -> Report:
        assert trailer is not None, "the engine ended a reply without its trailer"
        session = self._sessions.get(clock.request_id)
        tracker, sampling, scale = utterance.tracker, prompt.sampling, prompt.sampling.guidance_scale
        assert sampling.seed is not None
        self._stats.finished_total += 1
        return Report(
            finish_reason="length" if trailer.was_cut else "stop",
            num_prompt_rows=len(prompt.rows),
            num_text_tokens=tracker.num_text_tokens - tracker.num_interleaved,
            num_frames=tracker.num_frames,
            guided_frames=trailer.num_guided_frames,
            guidance_scale=scale,
            seed=sampling.seed,
            queue_s=trailer.queue_us / 1e6,
            first_frame_s=clock.first_frame_s or (clock.elapsed_s if tracker.num_frames else None),
            total_s=clock.elapsed_s,
            guidance_policy=sampling.policy,
            guidance_changes=tuple(utterance.guidance_changes),
            held_s=trailer.held_us / 1e6,
            input_audio_s=prompt.input_audio_s if session is None else session.seconds,
        )


def _is_timed(prompt: Prompt, family: Family) -> bool:
    """Return True if the reply's time to first frame is used for the admission limit.

    Streamed text and a larger first chunk delay the first frame for reasons outside the server.
    """
    return not prompt.is_open and prompt.delivery.chunking.first_frames <= family.first_chunk_frames


class _Clock:
    """Stopwatch of one reply, started with the request."""

    def __init__(self, permit: Permit) -> None:
        self._permit, self._start = permit, time.perf_counter()
        self.first_frame_s: float | None = None

    @property
    def request_id(self) -> str:
        """Id of the request."""
        return self._permit.request_id

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start

    def record(self, chunk: LMChunk) -> None:
        """On the first chunk with codes, record the time to first frame and report it to the admission control."""
        if chunk.codes is not None and self.first_frame_s is None:
            self.first_frame_s = self.elapsed_s
            self._permit.record_first_frame(self.first_frame_s)


def _split(output: RequestOutput) -> tuple[list[int], Trailer | None]:
    """Return the row ids in `output`, and the trailer of statistics if the reply has ended."""
    (completion,) = output.outputs
    ids = list(completion.token_ids)
    if not output.finished:
        return ids, None
    if completion.finish_reason not in ("stop", "length"):
        raise StrettoError(f"{output.request_id}: the engine ended the reply with {completion.finish_reason!r}")
    size = len(Trailer._fields)
    return ids[:-size], Trailer(*ids[-size:])
