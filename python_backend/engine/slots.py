"""The tables of all run slots: what each asked for, and where it stands. One row per slot, on the device."""

from dataclasses import dataclass, fields

import numpy as np
import torch

from python_backend.engine.params import SpeechParams
from python_backend.engine.rules import SegmentRules
from python_backend.engine.tracker import SegmentTracker
from python_backend.sampling.noise import seed_key


@dataclass
class SlotState:
    """Where a reply stands (see SegmentTracker); the device moves these on in every step, [B] int64 each."""

    audio_start: torch.Tensor
    audio_end: torch.Tensor
    num_text_tokens: torch.Tensor
    num_entries: torch.Tensor
    pointer: torch.Tensor


@dataclass
class SlotLimits:
    """What a request asked for in whole numbers; written once, [B] int64 each."""

    task: torch.Tensor
    text_min: torch.Tensor
    text_max: torch.Tensor
    audio_min: torch.Tensor
    audio_max: torch.Tensor
    text_top_k: torch.Tensor
    audio_top_k: torch.Tensor
    seed_key: torch.Tensor


@dataclass
class SlotScales:
    """What a request asked for in real numbers; written once, [B] float32 each."""

    text_temperature: torch.Tensor
    text_top_p: torch.Tensor
    audio_temperature: torch.Tensor
    audio_top_p: torch.Tensor
    script_temperature: torch.Tensor
    guidance: torch.Tensor


def _index(table: type) -> dict[str, int]:
    return {column.name: index for index, column in enumerate(fields(table))}


STATE, LIMITS, SCALES = _index(SlotState), _index(SlotLimits), _index(SlotScales)


def limits_row(params: SpeechParams, rules: SegmentRules) -> list[int]:
    """The row of SlotLimits for a request."""
    text, audio = params.sampling.text, params.sampling.audio
    assert params.sampling.seed is not None
    row = {
        "task": rules.task_index[params.task],
        "text_min": text.min_rows,
        "text_max": text.max_rows,
        "audio_min": audio.min_rows,
        "audio_max": audio.max_rows,
        "text_top_k": text.top_k,
        "audio_top_k": audio.top_k,
        "seed_key": seed_key(params.sampling.seed),
    }
    return [row[name] for name in LIMITS]


def scales_row(params: SpeechParams) -> list[float]:
    """The row of SlotScales for a request."""
    sampling = params.sampling
    row = {
        "text_temperature": sampling.text.temperature,
        "text_top_p": sampling.text.top_p,
        "audio_temperature": sampling.audio.temperature,
        "audio_top_p": sampling.audio.top_p,
        "script_temperature": sampling.script_temperature,
        "guidance": sampling.guidance_scale,
    }
    return [row[name] for name in SCALES]


def state_row(tracker: SegmentTracker) -> list[int]:
    """The row of SlotState for a reply that stands where `tracker` does."""
    row = {
        "audio_start": tracker.audio_start,
        "audio_end": tracker.audio_end,
        "num_text_tokens": tracker.num_text_tokens,
        "num_entries": len(tracker.script),
        "pointer": tracker.pointer,
    }
    return [row[name] for name in STATE]


class SlotTables:
    """State, limits and scales of every slot, the scripts and the codes by position.

    state, limits [R, *] int64, scales [R, *] float32; script [R, E + 1] int64, entry 0 unused;
    codes [R, T + 1, S - 1] int32: the streams 1 ... by position, the last position a place for what nobody reads.
    Limits and scales have a twin on the host, so that what a batch needs is known without asking the device.
    """

    def __init__(self, num_slots: int, rules: SegmentRules, device: torch.device):
        streams = rules.family.layout.num_input_streams
        self.limits_np = np.zeros((num_slots, len(LIMITS)), np.int64)
        self.scales_np = np.zeros((num_slots, len(SCALES)), np.float32)
        self.state = torch.zeros(num_slots, len(STATE), dtype=torch.int64, device=device)
        self.limits = torch.zeros(num_slots, len(LIMITS), dtype=torch.int64, device=device)
        self.scales = torch.zeros(num_slots, len(SCALES), dtype=torch.float32, device=device)
        self.script = torch.zeros(num_slots, rules.max_entries + 1, dtype=torch.int64, device=device)
        self.codes = torch.zeros(num_slots, rules.max_model_len + 1, streams - 1, dtype=torch.int32, device=device)
        # On the CPU the host sees the state itself; elsewhere it would have to wait for the device.
        self.state_np = self.state.numpy() if device.type == "cpu" else None
        self._staged: dict[int, tuple[list[int], list[int]]] = {}
        self._rules = rules

    def stage(self, slot: int, params: SpeechParams, tracker: SegmentTracker, codes: np.ndarray) -> None:
        """Fill `slot` with a request that stands where `tracker` does; `codes` [n, S - 1] are its rows so far."""
        self.limits_np[slot] = limits_row(params, self._rules)
        self.scales_np[slot] = scales_row(params)
        self._staged[slot] = (state_row(tracker), tracker.script)
        self.codes[slot, : len(codes)] = torch.tensor(codes)

    def apply_staged(self) -> None:
        """Bring what was staged to the device."""
        if not self._staged:
            return
        slots = np.fromiter(self._staged, np.int64)
        index = torch.from_numpy(slots).to(self.state.device)
        self.limits[index] = torch.from_numpy(self.limits_np[slots]).to(self.limits.device)
        self.scales[index] = torch.from_numpy(self.scales_np[slots]).to(self.scales.device)
        rows = [row for row, _ in self._staged.values()]
        self.state[index] = torch.tensor(rows, device=self.state.device)
        for slot, (_, script) in self._staged.items():
            self.script[slot, 1 : 1 + len(script)] = torch.tensor(script, dtype=torch.int64)
        self._staged.clear()
