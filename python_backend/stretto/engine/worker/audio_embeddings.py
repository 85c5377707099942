"""Embedded audio input of families with an audio encoder, inserted at placeholder rows.

Each audio input is embedded once per slot. After a preemption the scheduler sends the features again with the request.
"""

from collections.abc import Sequence
from typing import Any

import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from stretto.engine.worker.arrays import Arrays
from stretto.records.prompt import HeardAudio


class AudioEmbeddings:
    """Embedded audio of all slots, and the rows of the current step that it replaces.

    The tensors returned by `inputs` keep their addresses, as CUDA graphs require.

    Args:
        model: Model with `embed_audio`.
        arrays: Array factory.
        embeds: Row embeddings of the largest batch, [N, H]; defines shape, type and device.
    """

    def __init__(self, model: Any, arrays: Arrays, embeds: torch.Tensor):
        self._model, self._arrays = model, arrays
        self._embeds = torch.zeros_like(embeds)
        self._is_heard = torch.zeros(len(embeds), 1, dtype=torch.bool, device=embeds.device)
        self._of_slot: dict[int, list[tuple[int, torch.Tensor]]] = {}

    @torch.inference_mode()
    def place(self, slot: int, audios: Sequence[HeardAudio]) -> None:
        """Embed the audio inputs of the request in `slot`."""
        self._of_slot.pop(slot, None)
        if audios:
            self._of_slot[slot] = [(audio.first_row, self._embed(audio)) for audio in audios]

    def forget(self, slot: int) -> None:
        """Drop the audio of `slot`."""
        self._of_slot.pop(slot, None)

    def inputs(self, num_rows: int) -> dict[str, torch.Tensor]:
        """Return the model's audio inputs: embeddings [N, H], and a mask [N, 1] of the rows that they replace."""
        return {"heard": self._embeds[:num_rows], "is_heard": self._is_heard[:num_rows]}

    def fill(self, batch: InputBatch) -> dict[str, torch.Tensor]:
        """Fill and return `inputs` for the rows of `batch`."""
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
        # Copied because the received buffer is read-only, which torch warns about.
        features = self._arrays.tensor(self._arrays.upload(audio.features.copy()))
        embeds = self._model.embed_audio(features)
        if len(embeds) != audio.num_rows:
            raise ValueError(f"{len(audio.features)} frames make {len(embeds)} rows, not {audio.num_rows}")
        return embeds.to(self._embeds.dtype)
