"""Tables of the run slots, one row per request, and array factories for numpy and torch."""

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from stretto.engine import rules
from stretto.engine.columns import LIMITS, REDRAWS, SCALES, Array
from stretto.engine.reply_rules import ReplyState, SegmentRules
from stretto.engine.sampling.noise import seed_key
from stretto.engine.tracks import ENDLESS, Track
from stretto.records.prompt import Prompt
from stretto.records.sampling import SamplingConfig

if TYPE_CHECKING:  # it imports vLLM, which takes seconds
    from stretto.engine.step_records import NewText


class Arrays(Protocol):
    """Factory for a step's arrays, which are numpy or torch arrays (`xp`), and the reply rules for them."""

    xp: ModuleType
    rules: ModuleType

    def wrap(self, tensor: torch.Tensor) -> Array:
        """Return `tensor` as an array over the same memory."""

    def tensor(self, array: Array) -> torch.Tensor:
        """Return `array` as a tensor over the same memory."""

    def zeros(self, *shape: int) -> Array:
        """Return int64 zeros of this shape."""

    def int32(self, array: Array) -> Array:
        """Return `array` converted to int32."""

    def stack(self, columns: Sequence[Array]) -> Array:
        """Return n columns [B] as an array [B, n]."""

    def upload(self, values: np.ndarray) -> Array:
        """Return the host array `values` on the step's device, without waiting for the copy."""


class HostArrays:
    """Arrays on the CPU: numpy views of tensors."""

    xp: ModuleType = np
    rules: ModuleType = rules.with_where(np.where)

    def wrap(self, tensor: torch.Tensor) -> Array:
        return tensor.numpy()

    def tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array)

    def zeros(self, *shape: int) -> Array:
        return np.zeros(shape, np.int64)

    def int32(self, array: Array) -> Array:
        return array.astype(np.int32)

    def stack(self, columns: Sequence[Array]) -> Array:
        return np.array(columns).T

    def upload(self, values: np.ndarray) -> Array:
        return values


class DeviceArrays:
    """Arrays on a GPU: torch tensors on `device`."""

    xp: ModuleType = torch
    rules: ModuleType = rules.with_where(torch.where)

    def __init__(self, device: torch.device):
        self._device = device
        self._is_pinning = device.type == "cuda"

    def wrap(self, tensor: torch.Tensor) -> Array:
        return tensor

    def tensor(self, array: Array) -> torch.Tensor:
        return array

    def zeros(self, *shape: int) -> Array:
        return torch.zeros(shape, dtype=torch.int64, device=self._device)

    def int32(self, array: Array) -> Array:
        return array.to(torch.int32)

    def stack(self, columns: Sequence[Array]) -> Array:
        return torch.stack(list(columns), 1)

    def upload(self, values: np.ndarray) -> Array:
        """Copy `values` to the device through pinned memory, if available."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self._is_pinning:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)


def arrays_on(device: torch.device) -> Arrays:
    """Return the array factory for steps on `device`."""
    return HostArrays() if device.type == "cpu" else DeviceArrays(device)


def limits_row(prompt: Prompt, rules: SegmentRules) -> list[int]:
    """Return the values of SlotLimits for a request."""
    sampling = prompt.sampling
    tail = prompt.delayed_tail
    text = sampling.text
    audio = sampling.audio
    latents = sampling.latents
    assert sampling.seed is not None
    row = {
        "task": rules.task_index[prompt.task],
        "text_min": text.min_rows,
        "text_max": text.max_rows,
        "audio_min": audio.min_rows,
        "audio_max": audio.max_rows,
        "text_top_k": text.top_k,
        "audio_top_k": audio.top_k,
        "depth_top_k": sampling.codes.top_k,
        "seed_key": seed_key(sampling.seed),
        "forced_until": 0 if tail is None or not len(tail) else len(prompt.rows) + len(tail),
        "latent_steps": 0 if latents is None else latents.steps,
        "tail_rows": 0 if latents is None else latents.tail_rows,
        "track_total": 0,
    }
    row |= zip([*LIMITS][REDRAWS], rules.redraw_rows(sampling), strict=True)
    return [row[name] for name in LIMITS]


def scales_row(sampling: SamplingConfig) -> list[float]:
    """Return the values of SlotScales for a request."""
    inside = (
        None if sampling.guidance_scale != 1.0 else sampling.latents
    )  # guidance within the predictor, not by a CFG pair
    row = {
        "text_temperature": sampling.text.temperature,
        "text_top_p": sampling.text.top_p,
        "audio_temperature": sampling.audio.temperature,
        "audio_top_p": sampling.audio.top_p,
        "depth_temperature": sampling.codes.temperature,
        "depth_top_p": sampling.codes.top_p,
        "guidance": sampling.guidance_scale if inside is None else inside.guidance_scale,
        **sampling.columns,
    }
    return [row[name] for name in SCALES]


def counted_columns(tokens: Array, counted: range) -> Array:
    """Return the column of each id in the repetition penalty's table; ids not in `counted` share the last column."""
    column = tokens - counted.start
    is_counted = (column >= 0) & (column < len(counted))
    return column * is_counted + len(counted) * ~is_counted


class SlotTables:
    """Tables of all slots: state, ids and texts on the device, request parameters on the host.

    Attributes:
        state: Values of SlotState, then those of the family (`DrawRules.state`), int64 [R, 5 + C].
        codes: Streams 1 to S - 1 by position, int32 [R, T + 1, S - 1]; the last position is a dummy. Ids of an
            input-only stream are written as soon as they are known, even for future rows. An id of -1 - i on the text
            stream refers to entry i of `texts` (`TextRows`).
        texts: Texts that are not read row by row, or that the reply's rows write, int32 [R, G], in the mechanism's
            format (`DrawRules.num_text_entries`); [R, 0] for other families.
        limits: Values of SlotLimits, numpy int64 [R, 17].
        scales: Values of SlotScales, numpy float32 [R, 7 + N], with the N options in `NUMBER_OPTIONS` last.
        seen: True for ids that the reply contains, for the repetition penalty, bool [R, V + 1]. The last column is for
            ids that are not counted. The shape is [R, 0] for families without a penalty.
        sent_columns: Columns of `state` that are sent to the host with each row (`SegmentRules.sent_state`).
    """

    def __init__(self, num_slots: int, rules: SegmentRules, device: torch.device):
        streams = rules.family.layout.num_input_streams
        self.limits = np.zeros((num_slots, len(LIMITS)), np.int64)
        self.limits[:, REDRAWS] = ENDLESS
        self.scales = np.zeros((num_slots, len(SCALES)), np.float32)
        self.state = torch.zeros(num_slots, len(rules.state_names), dtype=torch.int64, device=device)
        self.codes = torch.zeros(num_slots, rules.max_model_len + 1, streams - 1, dtype=torch.int32, device=device)
        self.texts = torch.zeros(num_slots, rules.num_text_entries, dtype=torch.int32, device=device)
        num_seen_columns = len(rules.counted_ids) + 1 if rules.family.drawing.counts_ids else 0
        self.seen = torch.zeros(num_slots, num_seen_columns, dtype=torch.bool, device=device)
        self._staged: dict[int, list[np.ndarray]] = {}
        self._tracks: dict[int, Track] = {}
        self.sent_columns = [rules.state_names.index(name) for name in rules.sent_state]
        self._rules = rules

    def stage(
        self,
        slot: int,
        prompt: Prompt,
        reply: ReplyState,
        codes: np.ndarray,
        seen: Sequence[int] = (),
        track: Track | None = None,
        entries: Sequence[int] = (),
    ) -> None:
        """Prepare the rows of the tables for a request in `slot`. The next `apply_staged` uploads them.

        Args:
            codes: Streams 1 to S - 1 of the rows so far, [n, S - 1].
            seen: Ids of stream 0 that the repetition penalty counts.
            entries: Entries of `texts` that the reply's rows have written (`DrawRules.written_entries`).
        """
        self.limits[slot] = limits_row(prompt, self._rules)
        self.scales[slot] = scales_row(prompt.sampling)
        ids: Sequence[int] | np.ndarray = ()
        if track is not None:
            self._limit(slot, track.limits(prompt.sampling))
            self._tracks[slot] = track
            ids = track.entries_after(len(codes)).reshape(-1)
        codes = np.concatenate([codes, prompt.codes[len(codes) :]])  # including audio of the prompt that is continued
        counted = counted_columns(np.asarray(seen, np.int64), self._rules.counted_ids) if self.seen.shape[1] else ()
        rows = (reply.values(self._rules.state_names), entries, codes.reshape(-1), counted, ids)
        self._staged[slot] = [np.asarray(row, np.int32) for row in rows]

    def _limit(self, slot: int, limits: Mapping[str, int]) -> None:
        for name, value in limits.items():
            self.limits[slot, LIMITS[name]] = value

    def extend(self, new_text: Mapping[int, "NewText"], lanes: slice, arrays: Arrays) -> None:
        """Write newly arrived streamed text or live audio for all requests in one transfer.

        Args:
            new_text: New ids, keyed by run slot; if a track is complete, also the resulting limits of the reply.
        """
        for slot, new in new_text.items():
            self._limit(slot, new.limits)
        sizes = [len(new.entries) for new in new_text.values()]
        if any(sizes):
            entries = np.concatenate([new.entries for new in new_text.values()])
            rows = np.empty((len(entries), 1 + entries.shape[1]), np.int32)
            rows[:, 0] = np.repeat(list(new_text), sizes)
            rows[:, 1:] = entries
            packed = arrays.tensor(arrays.upload(rows))
            self._write(packed[:, 0].long(), packed[:, 1:], lanes)

    def _write(self, slots: torch.Tensor | int, entries: torch.Tensor, lanes: slice) -> None:
        """Write entries of tracks, int32 [n, 1 + K] (`Track.entries`), to the tables of one slot or n slots [n]."""
        places = entries[:, 0].long()
        if self.texts.shape[1]:
            self.texts[slots, places] = entries[:, 1]
        else:
            self.codes[slots, places, lanes] = entries[:, 1:]

    def apply_staged(self, arrays: Arrays) -> None:
        """Copy all staged rows to the device in a single transfer."""
        if not self._staged:
            return
        packed = arrays.tensor(arrays.upload(np.concatenate([row for rows in self._staged.values() for row in rows])))
        for slot, rows in self._staged.items():
            state, entries, codes, seen, ids, packed = packed.tensor_split(
                np.cumsum([len(row) for row in rows]).tolist()
            )
            self.state[slot] = state
            self.texts[slot, : len(entries)] = entries
            track = self._tracks.pop(slot, None)
            width = self.codes.shape[2]
            if track is not None and not self.texts.shape[1]:
                self.codes[slot, :, track.lanes] = track.pad_id
            if width:
                self.codes[slot, : len(codes) // width] = codes.view(-1, width)
            if track is not None:
                self._write(slot, ids.view(-1, 1 + track.ids.shape[1]), track.lanes)
            self.seen[slot] = False
            self.seen[slot].index_fill_(0, seen.long(), True)  # an assignment would copy `True` and wait for the copy
        self._staged.clear()
