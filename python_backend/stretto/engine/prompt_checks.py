"""Checks of a prompt before queueing. Each error contains the field, the limit and the value."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stretto.engine.client import EngineClient
from stretto.engine.reply_rules import SegmentRules
from stretto.errors import InvalidRequest, shown
from stretto.family.base import Task
from stretto.family.option_checks import check_sampling
from stretto.machine.kv_blocks import MAX_STEPS_IN_FLIGHT, SessionBlocks, blocks_in_window
from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig
from stretto.streams.layout import LatentSpec, Segment, latents_of


@dataclass(frozen=True, slots=True)
class Capacity:
    """KV cache and batch size of one engine (with data parallelism, of each engine).

    Attributes:
        window: Number of rows that each row attends to, if all layers have a sliding window. Blocks before the window
            are freed.
        num_in_flight: Maximum number of rows that are being computed; needed only if there is a window.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    window: int | None = None
    num_in_flight: int = 0
    num_engines: int = 1

    @classmethod
    def from_engine(cls, engine: EngineClient) -> "Capacity":
        """Return the capacity of each engine."""
        ready = engine.ready
        limits = engine.started
        return cls(
            ready.num_gpu_blocks,
            ready.block_size,
            ready.max_num_seqs,
            limits.window,
            limits.num_in_flight,
            engine.num_engines,
        )

    def max_sessions(self, rules: SegmentRules) -> int:
        """Return the maximum number of live sessions that may be open at the same time.

        Each session keeps a run slot and its KV blocks (see `KvBlocks.sessions`). Where possible, capacity for one
        other reply is left free.
        """
        rows = rules.max_model_len
        usable = self.num_blocks - 1
        session_blocks = SessionBlocks.from_rows(rows, self.block_size, self.window, MAX_STEPS_IN_FLIGHT).room
        other = blocks_in_window(rows, self.block_size, self.window, self.num_in_flight)
        return self.num_engines * max(1, min(self.max_num_seqs - 1, (usable - other) // session_blocks))


def check_prompt(prompt: Prompt, rules: SegmentRules, capacity: Capacity) -> Prompt:
    """Check a prompt and return it ready for queueing, or raise InvalidRequest if it can never run."""
    tasks = {task.name: task for task in rules.family.tasks}
    if prompt.task not in tasks:
        raise InvalidRequest("task", f"one of {sorted(tasks)}", repr(prompt.task))
    task = tasks[prompt.task]
    if prompt.voice < 0:
        raise InvalidRequest("voice", "an integer of at least 0", prompt.voice)
    check_sampling(prompt.sampling, rules.family, task)
    _check_rows(prompt.rows, rules)
    if rules.family.layout.latents:
        _check_latents(prompt.rows, rules.family.layout.latents, rules)
    if prompt.delayed_tail is not None:
        _check_delayed_tail(prompt.delayed_tail, task, rules)
    _check_length(prompt, task, rules)
    _check_track(prompt, rules)
    if prompt.condition is not None:
        conditions = rules.family.mechanism.conditions
        if conditions is None:
            raise InvalidRequest("condition", f"no value ({rules.family.name} has no conditions)", "a value")
        conditions.check(prompt.condition)
    if prompt.num_reference_rows:
        _check_reference(prompt, task, rules)
    if rules.ends_streams:
        _check_window(prompt, rules)
    if prompt.sampling.has_pair:
        _check_pair(prompt, task, rules, capacity)
    _check_blocks(prompt, task, rules, capacity)
    return prompt


def _check_rows(rows: np.ndarray, rules: SegmentRules) -> None:
    layout = rules.family.layout
    if not isinstance(rows, np.ndarray):
        raise InvalidRequest("rows", f"an int32 array [P >= 1, {layout.num_input_streams}]", type(rows).__name__)
    if rows.ndim != 2 or rows.shape[1] != layout.num_input_streams or len(rows) == 0 or rows.dtype != np.int32:
        raise InvalidRequest("rows", f"int32 [P >= 1, {layout.num_input_streams}]", f"{rows.dtype} {list(rows.shape)}")
    for stream in range(layout.num_input_streams):
        ids = rows[:, stream]
        allowed = range(layout.vocab_size)
        silent: tuple[int, ...] = ()
        if layout.latents and stream:
            break
        if 0 < stream < layout.num_output_streams:
            extra = layout.extra[stream] if layout.extra else ()
            silent = (layout.pad_id, *extra, *layout.initial[stream : stream + 1])
            allowed = layout.audio[stream]
        is_wrong = (ids < allowed.start) | (ids >= allowed.stop)
        for silent_id in silent:  # few: a fifth of the time of numpy's `isin`
            is_wrong &= ids != silent_id
        if is_wrong.any():
            ids = ids[~np.isin(ids, silent)]
            expected = f"ids of stream {stream} in [{allowed.start}, {allowed.stop})"
            raise InvalidRequest("rows", expected, f"{ids.min()} ... {ids.max()}")


def _check_latents(rows: np.ndarray, latents: LatentSpec, rules: SegmentRules) -> None:
    frames = rules.family.layout.audio[0]
    words = rows[:, 1:]
    ids = rows[:, 0]
    voices = latents.voice_ids
    has_latent = (ids >= frames.start) & (ids < frames.stop) | (ids >= voices.start) & (ids < voices.stop)
    if words[~has_latent].any():
        raise InvalidRequest("rows", "0 in streams 1 and up of rows without a latent", "non-zero values")
    if not np.isfinite(latents_of(words)).all():
        raise InvalidRequest("rows", "finite latents", "NaN or infinity")
    if (last := rules.family.drawing.prompt_end) is not None and ids[-1] != last:
        raise InvalidRequest("rows", f"{last}, which begins audio, as the last id", ids[-1])


def _check_delayed_tail(delayed_tail: np.ndarray, task: Task, rules: SegmentRules) -> None:
    if task.writes or rules.family.warm_up.is_sampled:
        raise InvalidRequest(
            "delayed_tail", f"no rows for task {task.name} of {rules.family.name}", f"{len(delayed_tail)} rows"
        )
    if len(delayed_tail) > rules.family.layout.max_delay:
        raise InvalidRequest(
            "delayed_tail", f"at most {rules.family.layout.max_delay} rows", f"{len(delayed_tail)} rows"
        )
    _check_rows(np.concatenate([np.zeros_like(delayed_tail[:, :1]), delayed_tail], 1), rules)


def _check_track(prompt: Prompt, rules: SegmentRules) -> None:
    if rules.family.code_track is not None:
        _check_code_track(prompt, rules, len(rules.family.code_track.streams))
        return
    text = rules.family.text_track
    if text is None and prompt.track:
        raise InvalidRequest("track", f"no ids ({rules.family.name} has no text track)", f"{len(prompt.track)} ids")
    if prompt.is_open and (text is None or (prompt.sampling.has_pair and text.open is None)):
        reply_described = "a guided reply" if text else rules.family.name
        raise InvalidRequest(
            "text", f"the complete text ({reply_described} does not support streamed text)", "streamed text"
        )
    if text is None:
        return
    ids = prompt.track[rules.num_recorded(prompt.track) : None if prompt.is_open else -1]
    text.check_text(ids, rules.family.layout.audio[0])
    takes_rows = rules.text_rows is not None
    last = rules.max_model_len - len(prompt.rows)
    if prompt.is_open or takes_rows:
        last = max_words(prompt, rules) + (not prompt.is_open)
    size = rules.family.layout.vocab_size
    num_ids = num_text_ids(prompt, rules)
    if num_ids > last:
        raise InvalidRequest("text", f"at most {last} tokens after the prompt", f"{num_ids} tokens")
    longest = rules.max_model_len - len(prompt.rows) - 2  # the end id, and a frame
    if takes_rows and len(prompt.track) > longest:
        raise InvalidRequest("track", f"at most {longest} ids, including codes of a recording", len(prompt.track))
    if prompt.track and not 0 <= min(prompt.track) <= max(prompt.track) < size:
        raise InvalidRequest("track", f"token ids in [0, {size})", f"{min(prompt.track)} ... {max(prompt.track)}")


def _check_code_track(prompt: Prompt, rules: SegmentRules, width: int) -> None:
    """Check the recorded codes that a reply reads row by row, `width` codes per row."""
    size = rules.family.layout.vocab_size
    last = max_frames(prompt, rules)
    if prompt.is_open and not prompt.track:
        return
    if not prompt.track or len(prompt.track) % width:
        raise InvalidRequest("track", f"{width} ids for each frame of a recording", f"{len(prompt.track)} ids")
    if len(prompt.track) // width > last:
        raise InvalidRequest("audio", f"at most {last} frames of audio", f"{len(prompt.track) // width} frames")
    if not 0 <= min(prompt.track) <= max(prompt.track) < size:
        raise InvalidRequest("track", f"ids in [0, {size})", f"{min(prompt.track)} ... {max(prompt.track)}")


def max_frames(prompt: Prompt, rules: SegmentRules) -> int:
    """Return the maximum number of frames in a recording that a reply can read to its end."""
    return rules.max_model_len - len(prompt.rows) - 2


def _check_window(prompt: Prompt, rules: SegmentRules) -> None:
    """Raise InvalidRequest if the window of repetition-aware sampling is too long for a prompt with codes.

    Repeats are counted only in the reply, whereas the model's reference implementation also counts codes in the prompt.
    Prompt codes and reply codes are separated by `max_delay` + 2 rows with BOS or EOS ids, so the results are equal for
    windows of at most that length.
    """
    codes = rules.family.layout.audio[0]
    longest = rules.family.layout.max_delay + 2
    has_codes = ((prompt.rows[:, 0] >= codes.start) & (prompt.rows[:, 0] < codes.stop)).any()
    if prompt.sampling.ras_window > longest and has_codes:
        expected = f"an integer in [0, {longest}], because the prompt contains audio"
        raise InvalidRequest("options.audio.ras_window", expected, prompt.sampling.ras_window)


def known_ids(ids: Sequence[int], rules: SegmentRules) -> Sequence[int]:
    """Return the ids of a streamed text unchanged, or raise InvalidRequest if any of them is not a text id."""
    size = rules.family.layout.vocab_size
    if not all(isinstance(token_id, int) and 0 <= token_id < size for token_id in ids):
        raise InvalidRequest("text", f"token ids in [0, {size})", shown(list(ids)))
    text = rules.family.text_track
    if text is not None:
        text.check_text(ids, rules.family.layout.audio[0])
    return ids


def max_words(prompt: Prompt, rules: SegmentRules) -> int:
    """Return the maximum number of token ids of a streamed text after the prompt, not counting the end id.

    A frame reads one id, and the reply may end only after the end id has been read. The length limits must therefore
    leave room for one frame per id and one for the end id. A family may have a rule of its own
    (`TextTrack.max_text_ids`).
    """
    num_rows = min(prompt.sampling.audio.max_rows, rules.audio_limit - len(prompt.rows))
    return rules.max_track_words(prompt.track, num_rows)


def num_text_ids(prompt: Prompt, rules: SegmentRules) -> int:
    """Return the number of text ids in a prompt's track, excluding codes of a recording."""
    return len(prompt.track) - rules.num_recorded(prompt.track)


def _check_reference(prompt: Prompt, task: Task, rules: SegmentRules) -> None:
    layout = rules.family.layout
    length = prompt.num_reference_rows
    num_delayed = 0 if prompt.delayed_tail is None else len(prompt.delayed_tail)
    if not task.speaks or layout.max_delay != num_delayed or rules.family.rows_per_frame > 1:
        raise InvalidRequest("num_reference_rows", f"0 for task {task.name} of {rules.family.name}", length)
    if not 0 < length <= len(prompt.rows):
        raise InvalidRequest("num_reference_rows", f"at most {len(prompt.rows)}, the number of prompt rows", length)
    for stream in (0,) if layout.latents else layout.codebook_streams:
        ids = prompt.reference_ids(stream, layout.delays[stream])
        codes = layout.audio[stream]
        if not codes.start <= ids.min() <= ids.max() < codes.stop:
            expected = f"codes of stream {stream} in [{codes.start}, {codes.stop}) in the rows of a reference"
            raise InvalidRequest("rows", expected, f"{ids.min()} ... {ids.max()}")


def _check_length(prompt: Prompt, task: Task, rules: SegmentRules) -> None:
    limit = rules.text_limit(task) if task.writes else rules.audio_start_limit
    if len(prompt.rows) > limit:
        expected = f"a prompt of at most {limit} rows for task {task.name}"
        raise InvalidRequest("text, audio or messages", expected, f"{len(prompt.rows)} rows")


def max_rows(num_prompt_rows: int, task: Task, sampling: SamplingConfig, rules: SegmentRules) -> int:
    """Return the maximum number of rows, including the prompt, that a request may occupy in the KV cache."""
    rows = num_prompt_rows
    if task.writes:
        rows += sampling.text.max_rows + 1
    if Segment.AUDIO in task.segments:
        rows += len(rules.family.transition) + sampling.audio.max_rows + 1 + rules.num_tail_rows
    return min(rows, rules.max_model_len)


def _check_pair(prompt: Prompt, task: Task, rules: SegmentRules, capacity: Capacity) -> None:
    if capacity.max_num_seqs < 2:
        raise InvalidRequest("options.guidance_scale", "1.0 (max_num_seqs is 1)", prompt.sampling.guidance_scale)
    if not task.writes and len(prompt.rows) < 2:
        raise InvalidRequest("rows", "at least 2 rows before a guided reply that begins with audio", len(prompt.rows))


def _check_blocks(prompt: Prompt, task: Task, rules: SegmentRules, capacity: Capacity) -> None:
    """Reject a request that needs more KV blocks than exist; vLLM would queue it and all later requests forever."""
    is_guided = prompt.sampling.has_pair
    rows = max_rows(len(prompt.rows), task, prompt.sampling, rules)
    needed = blocks_in_window(rows, capacity.block_size, capacity.window, capacity.num_in_flight)
    needed *= 2 if is_guided else 1
    usable = capacity.num_blocks - 1  # vLLM reserves one block
    if needed > usable:
        size = f"{rows} rows, doubled by guidance" if is_guided else f"{rows} rows"
        raise InvalidRequest(
            f"options.{'audio' if Segment.AUDIO in task.segments else 'text'}.max_rows",
            f"a prompt and reply of at most {usable} KV blocks of {capacity.block_size} rows",
            f"{needed} blocks ({size})",
        )
