"""Audio that a model hears through its own encoder: embedded once per slot, put in the place of placeholder rows.

A slot is filled again after a preemption, and its audio embedded again: the scheduler ships the features with it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from stretto.engine.worker.arrays import Arrays
from stretto.records.prompt import HeardAudio


class AudioEmbeddings:
    """The embedded audio of all slots, and the part of it that stands in the rows of a step.

    The addresses of `inputs` stay the same from step to step, as a CUDA graph wants it.
    """

    def __init__(self, model: Any, arrays: Arrays, embeds: torch.Tensor):
        """`embeds` [N, H]: of the type and the place of the rows of a batch of N, and as large."""
        self._model, self._arrays = model, arrays
        self._embeds = torch.zeros_like(embeds)
        self._is_heard = torch.zeros(len(embeds), 1, dtype=torch.bool, device=embeds.device)
        self._of_slot: dict[int, list[tuple[int, torch.Tensor]]] = {}

    @torch.inference_mode()
    def place(self, slot: int, audios: Sequence[HeardAudio]) -> None:
        """Embed the audio of the request that `slot` is filled with."""
        self._of_slot.pop(slot, None)
        if audios:
            self._of_slot[slot] = [(audio.first_row, self._embed(audio)) for audio in audios]

    def forget(self, slot: int) -> None:
        """Let the audio of `slot` go."""
        self._of_slot.pop(slot, None)

    def inputs(self, num_rows: int) -> dict[str, torch.Tensor]:
        """What the model's forward pass takes: embedded audio [N, H], and in which rows it counts, [N, 1]."""
        return {"heard": self._embeds[:num_rows], "is_heard": self._is_heard[:num_rows]}

    def fill(self, batch: InputBatch) -> dict[str, torch.Tensor]:
        """`inputs` for the rows of `batch`."""
        num_rows = batch.num_tokens_after_padding
        self._is_heard[:num_rows] = False
        if not self._of_slot:
            return self.inputs(num_rows)
        computed, scheduled = batch.num_computed_tokens_np, batch.num_scheduled_tokens
        for index, slot in enumerate(batch.idx_mapping_np.tolist()):
            first = int(computed[index])
            for begins, embeds in self._of_slot.get(slot, ()):
                start, stop = max(first, begins), min(first + int(scheduled[index]), begins + len(embeds))
                if start < stop:
                    at = int(batch.query_start_loc_np[index]) + start - first
                    self._embeds[at : at + stop - start] = embeds[start - begins : stop - begins]
                    self._is_heard[at : at + stop - start] = True
        return self.inputs(num_rows)

    def _embed(self, audio: HeardAudio) -> torch.Tensor:
        # A copy, as what came over the wire may not be written to, and torch warns of that.
        features = self._arrays.tensor(self._arrays.upload(audio.features.copy()))
        embeds = self._model.embed_audio(features)
        if len(embeds) != audio.num_rows:
            raise ValueError(f"{len(audio.features)} frames make {len(embeds)} rows, not {audio.num_rows}")
        return embeds.to(self._embeds.dtype)
