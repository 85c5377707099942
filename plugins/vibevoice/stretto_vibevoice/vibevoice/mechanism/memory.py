"""Recurrent states of the network that encodes decoded audio."""

import logging
from collections import OrderedDict
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from vllm import envs

from stretto.engine.protocol import is_unconditional
from stretto.engine.step_records import SpeechRequestData
from stretto.streams.layout import latents_of
from stretto_vibevoice.vibevoice.family import Stretches

logger = logging.getLogger(__name__)


class LatentFeedback(Protocol):
    """Network that encodes the decoded audio of latents to features, which are further words of their rows.

    Attributes:
        num_kept: Size of the network's memory of earlier latents, in float32 numbers, which are zeros at first.
        reach: Number of previous latents on which features and memory depend.
    """

    num_kept: int
    reach: int

    def __call__(self, latents: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features, float32 [N, E], of the next latents [N, D], and the new memories [N, num_kept]."""
        ...


MAX_ASIDE_BYTES = 256 << 20
# Number of frames that a batch-invariant GPU decodes in one batch, because convolutions choose their algorithm by batch
# size.
GROUP = 16


class Aside(NamedTuple):
    """Saved feedback state, on the host, of a request that has left its slot.

    Attributes:
        row: Position of the last latent that the state includes, int64 [1].
        memory: The memory, float32 [num_kept].
        copied: Event recorded after the copies from a GPU; None on a CPU.
    """

    row: torch.Tensor
    memory: torch.Tensor
    copied: torch.cuda.Event | None


class FeedbackMemory:
    """Recurrent states ("memories") of a feedback network, one per slot.

    Memories of preempted requests are saved. If a resumed request has no saved memory, the memory is recomputed from
    the latents, one latent at a time. The result is bit-identical.
    """

    def __init__(self, network: LatentFeedback, stretches: Stretches, size: int, num_slots: int, device: torch.device):
        self._network = network
        self._stretches = stretches
        self._size = size
        # The last memory is for rows without a frame, so that the kernel launches do not depend on the rows.
        self._spare = num_slots
        self._memories = torch.zeros(num_slots + 1, network.num_kept, device=device)
        # Position of the last latent in each memory; -1 for none.
        self._rows = torch.full((num_slots + 1,), -1, dtype=torch.int64, device=device)
        self._is_on_host = device.type == "cpu"
        self._group = GROUP if envs.VLLM_BATCH_INVARIANT else 0
        if self._is_on_host:
            self._group = 1
        self._aside = OrderedDict[str, Aside]()
        self._max_aside = max(1, MAX_ASIDE_BYTES // (4 * network.num_kept))
        self.num_restored = self.num_rebuilt = 0

    def advance(
        self,
        latents: torch.Tensor,
        slots: torch.Tensor,
        positions: torch.Tensor,
        begins: torch.Tensor,
        is_frame: torch.Tensor,
    ) -> torch.Tensor:
        """Return the network's features of the decoded audio, float32 [A, E], and update the memories.

        Args:
            latents: Latents, [A, D].
            slots: Slots of the rows, int64 [A].
            positions: Positions of the rows, int64 [A].
            begins: True for the first frame of a stretch, whose memory starts at zero, bool [A].
            is_frame: True for rows with a frame, bool [A]. Features of other rows are 0, and their memory is unchanged.
        """
        if not self._is_on_host:
            places = torch.where(is_frame, slots, self._spare)
            features = self._decode(latents, places, positions, begins | ~is_frame)
            return torch.where(is_frame[:, None], features, 0.0)
        features = latents.new_zeros(len(latents), self._stretches.num_features)
        (at,) = is_frame.nonzero(as_tuple=True)
        if len(at):
            features[at] = self._decode(latents[at], slots[at], positions[at], begins[at])
        return features

    def put_aside(self, request_id: str, slot: int) -> None:
        """Save the memory of a request that leaves its slot, in case the request was preempted."""
        if self._is_on_host:
            if self._rows[slot] < 0:
                return
            self._aside[request_id] = Aside(self._rows[slot, None].clone(), self._memories[slot].clone(), None)
        else:  # the host does not wait for the copies
            row, memory = (
                torch.empty_like(table[0], device="cpu", pin_memory=True) for table in (self._rows, self._memories)
            )
            row.copy_(self._rows[slot], non_blocking=True)
            memory.copy_(self._memories[slot], non_blocking=True)
            copied = torch.cuda.Event()
            copied.record()
            self._aside[request_id] = Aside(row[None], memory, copied)
        self._rows[slot] = -1
        self._aside.move_to_end(request_id)
        while len(self._aside) > self._max_aside:
            self._aside.popitem(last=False)

    def fill_slot(self, slot: int, data: SpeechRequestData) -> None:
        """Restore the memory of a request that continues in `slot`. A new request needs no memory."""
        row = self._last_latent(data)
        aside = self._aside.pop(data.req_id, None)
        self._rows[slot] = row
        if row < 0:
            return
        if aside is not None and aside.copied is not None:
            aside.copied.synchronize()  # recorded in an earlier step
        if aside is not None and int(aside.row) == row:
            self.num_restored += 1
            self._memories[slot].copy_(aside.memory, non_blocking=True)
            return
        self._rebuild(slot, row, data)

    def _rebuild(self, slot: int, row: int, data: SpeechRequestData) -> None:
        """Recompute the memory after position `row` from the latents of the stretch."""
        assert data.codes is not None
        self.num_rebuilt += 1
        first = max(self._stretch_start(data), row - self._network.reach)
        logger.info("%s: decoding the audio of %d frames again", data.req_id, row + 1 - first)
        latents = torch.from_numpy(latents_of(data.codes[first : row + 1, : self._size]))
        device = self._memories.device
        places, positions = (torch.full((1,), value, device=device) for value in (slot, row))
        for index, latent in enumerate(latents.to(device).split(1)):
            self._decode(latent, places, positions, torch.full((1,), index == 0, device=device))

    def _decode(
        self, latents: torch.Tensor, places: torch.Tensor, positions: torch.Tensor, begins: torch.Tensor
    ) -> torch.Tensor:
        """Return the features [A, E] of latents [A, D], and update the memories at `places` [A].

        The batch is decoded in groups of a fixed size, so that a row's result does not depend on other rows.
        """
        number = len(latents)
        group = self._group or len(latents)
        missing = -number % group
        if missing:
            latents = F.pad(latents, (0, 0, 0, missing))
            places = F.pad(places, (0, missing), value=self._spare)
            positions = F.pad(positions, (0, missing))
            begins = F.pad(begins, (0, missing), value=True)
        features = []
        for first in range(0, len(latents), group):
            rows = slice(first, first + group)
            memory = self._memories[places[rows]].masked_fill(begins[rows, None], 0.0)
            group_features, memory = self._network(latents[rows], memory)
            self._memories[places[rows]] = memory
            features.append(group_features)
        self._rows[places] = positions.long()
        return torch.cat(features)[:number]

    def _last_latent(self, data: SpeechRequestData) -> int:
        """Return the position of the newest row if it is a frame of the reply, else -1."""
        ids = data.prefill_token_ids or []
        is_frame = len(ids) > data.prompt_len and ids[-1] == self._stretches.frame and not is_unconditional(data.req_id)
        return len(ids) - 1 if is_frame else -1

    def _stretch_start(self, data: SpeechRequestData) -> int:
        ids = np.asarray(data.prefill_token_ids)
        return 1 + int(np.flatnonzero(ids == self._stretches.begin)[-1])
