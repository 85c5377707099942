"""Messages between the front end and the scheduler: prompts, adapters, rows and statistics."""

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stretto.engine.reply_rules import SegmentRules
from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.family.plugin import read_family
from stretto.records.prompt import Prompt

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def family_of(config: "PretrainedConfig") -> Family:
    """Return the family named in a checkpoint's config.json, or raise CheckpointError if there is none."""
    return read_family(config.to_dict())


UNCONDITIONAL_SUFFIX = "#unconditional"


def is_unconditional(request_id: str) -> bool:
    """Return True for the id of the unconditional request of a CFG pair."""
    return request_id.endswith(UNCONDITIONAL_SUFFIX)


def partner_of(request_id: str) -> str:
    """Return the id of the other request in the CFG pair of `request_id`."""
    if is_unconditional(request_id):
        return request_id.removesuffix(UNCONDITIONAL_SUFFIX)
    return request_id + UNCONDITIONAL_SUFFIX


def num_guided(switches: Sequence[int], num_frames: int) -> int:
    """Return how many of the first `num_frames` frames are guided.

    Args:
        switches: Frames at which guidance stops, resumes, stops, and so on; guidance is on at frame 0.
    """
    edges = [0, *(min(frame, num_frames) for frame in switches), num_frames]
    return sum(goes - comes for comes, goes in zip(edges[::2], edges[1::2], strict=False))


KEY = "speech"


def to_extra_args(prompt: Prompt, host: str = "") -> dict[str, Any]:
    """Return the part of a prompt that the scheduler and the worker need, for `SamplingParams.extra_args`.

    Raises:
        InvalidRequest: If a value has the wrong type. An engine that cannot read a request would end.
    """
    needed = Prompt(
        prompt.task,
        prompt.rows,
        prompt.sampling,
        audios=prompt.audios,
        images=prompt.images,
        delayed_tail=prompt.delayed_tail,
        track=prompt.track,
        is_open=prompt.is_open,
        condition=prompt.condition,
        num_first_frames=prompt.num_first_frames,
    )
    try:
        packed = needed.to_bytes()
    except TypeError as error:  # such as a number of numpy's
        raise InvalidRequest("prompt", "Python's own types", str(error)) from error
    record: dict[str, Any] = {"prompt": packed, "rows": prompt.rows.tobytes(), "host": host}
    for name, array in (("features", prompt.features), ("patches", prompt.patches)):
        record[name] = None if array is None else (array.astype(np.float32, copy=False).tobytes(), array.shape[1])
    read_extra_args({KEY: record}, prompt.rows.shape[1])
    return {KEY: record}


def read_extra_args(extra_args: dict[str, Any], num_streams: int) -> tuple[Prompt, str]:
    """Return the prompt and the client host in `extra_args`, or raise InvalidRequest if a value has the wrong type."""
    record = extra_args[KEY]
    rows = np.frombuffer(record["rows"], np.int32).reshape(-1, num_streams)
    features, patches = (
        None if packed is None else np.frombuffer(packed[0], np.float32).reshape(-1, packed[1])
        for packed in (record["features"], record["patches"])
    )
    return Prompt.from_bytes("prompt", record["prompt"], rows, features, patches), record["host"]


DELTA = 1  # vLLM's RequestOutputKind: each output has only the new ids


def sampling_fields(prompt: Prompt, rules: SegmentRules, host: str = "") -> dict[str, Any]:
    """Return fields of vLLM's `SamplingParams`: the stop condition, and the prompt as `extra_args`."""
    return {
        "temperature": 0.0,
        "max_tokens": rules.max_model_len - len(prompt.rows),
        "stop_token_ids": [rules.family.end_of_reply],
        "ignore_eos": True,
        "detokenize": False,
        "output_kind": DELTA,
        "extra_args": to_extra_args(prompt, host),
    }


class Adapter(NamedTuple):
    """Leading fields of vLLM's `LoRARequest`, with a positive `number`."""

    name: str
    number: int
    path: str


def configured_adapters(paths: Mapping[str, str | Path]) -> list[Adapter]:
    """Return the adapters in the folders `paths`, with ids 1, 2, … in order."""
    return [Adapter(name, number, str(path)) for number, (name, path) in enumerate(paths.items(), 1)]


NO_CHANGE = 0
GUIDANCE_OFF = 1
GUIDANCE_ON = 2


class Trailer(NamedTuple):
    """Statistics of a finished reply, which the engine sends after the last row, encoded as ids.

    Attributes:
        was_cut: 1 if a length limit ended a segment before the model did, else 0.
        held_us: Time spent waiting for streamed text or live audio, in microseconds.
    """

    num_guided_frames: int
    num_preemptions: int
    was_cut: int
    queue_us: int
    held_us: int


def read_rows(ids: Sequence[int], num_words: int) -> np.ndarray:
    """Return the rows in vLLM's flat output, int64 [n, 1 + W], with W = `num_words` (`SegmentRules.num_row_words`).

    Column 0 is the row's guidance mark (`NO_CHANGE`, `GUIDANCE_OFF` or `GUIDANCE_ON`). The output streams follow, then
    pause probabilities if the family has any, and the state of the reply after the row (`SegmentRules.sent_state`).
    """
    return np.array(ids, np.int64).reshape(-1, 1 + num_words)


STATS_KEY = "speech_stats"


@dataclass
class EngineStats:
    """Counters (`…_total`) and gauges of a scheduler.

    Attributes:
        engine_busy_seconds_total: Time with at least one step in flight, in seconds.
        step_seconds: Time from scheduling the last step to its output, in seconds.
        held_pairs: CFG pairs with one running and one waiting request.
        kv_usage: Fraction of the KV blocks in use.
        replies_without_words: Replies that are waiting for streamed text.
        seconds_without_words_total: Total time that replies have waited for streamed text, in seconds.
        replies_without_frames: Live sessions that are waiting for audio, which keep their slots and KV blocks.
        live_rows_recomputed_total: Rows that preempted live sessions had to recompute; 0 if blocks are reserved.
    """

    engine_steps_total: float = 0.0
    engine_busy_seconds_total: float = 0.0
    engine_rows_total: float = 0.0
    preemptions_total: float = 0.0
    preempted_pairs_total: float = 0.0
    dropped_halves_total: float = 0.0
    restored_halves_total: float = 0.0
    step_seconds: float = 0.0
    running_requests: float = 0.0
    waiting_requests: float = 0.0
    running_pairs: float = 0.0
    held_pairs: float = 0.0
    kv_usage: float = 0.0
    replies_without_words: float = 0.0
    seconds_without_words_total: float = 0.0
    replies_without_frames: float = 0.0
    live_rows_recomputed_total: float = 0.0


NAMES = tuple(column.name for column in fields(EngineStats))
SHARES = frozenset({"kv_usage", "step_seconds"})  # averaged over schedulers; all others are summed


class SharedStats:
    """Shared memory with the statistics of all schedulers, float64 [schedulers, fields].

    Each number is written atomically, but a reader may see a mix of fields from two updates.
    """

    def __init__(self, path: Path, num_lines: int, descriptor: int | None = None):
        self.path = path
        self._descriptor = descriptor
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), num_lines * len(NAMES) * 8)
        self._lines = np.frombuffer(self._map, np.float64).reshape(num_lines, len(NAMES))

    @classmethod
    def create(cls, num_lines: int) -> "SharedStats":
        """Create zeroed shared memory for `num_lines` schedulers; call `close` once all have opened it.

        The memory has no file name, so nothing remains if this process is killed. Other processes of the same user open
        it through this process's entry in /proc.
        """
        descriptor = os.memfd_create("stretto_stats", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, num_lines * len(NAMES) * 8)
        return cls(Path(f"/proc/{os.getpid()}/fd/{descriptor}"), num_lines, descriptor)

    def close(self) -> None:
        """Close the descriptor, so that no further process can open the memory. Existing mappings stay valid."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def write(self, line: int, stats: EngineStats) -> None:
        """Write the statistics of the scheduler with index `line`."""
        self._lines[line] = [getattr(stats, name) for name in NAMES]

    def read(self) -> EngineStats:
        """Return the statistics of all schedulers combined: sums, and averages of the fields in SHARES."""
        totals = self._lines.sum(0)
        values = {
            name: float(total) / (len(self._lines) if name in SHARES else 1)
            for name, total in zip(NAMES, totals, strict=True)
        }
        return EngineStats(**values)
