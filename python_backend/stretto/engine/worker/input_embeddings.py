"""Encoded audio and images of requests, which replace rows of their prompts."""

from typing import Any

import numpy as np
import torch
from vllm.v1.worker.gpu.input_batch import InputBatch

from stretto.engine.worker.slots import Arrays
from stretto.records.prompt import InputAudio, InputImage, Prompt


class InputEmbeddings:
    """Encoded audio and images of all slots, which are copied to the rows of each step.

    A slot's rows are dropped once its last step with such rows has begun. A preempted request encodes them again.

    The tensors returned by `inputs` have fixed addresses, as CUDA graphs require.

    Args:
        model: Model with `embed_audio`, `adaptor` and `image_encoder`, which is None without images.
        embeds: Embedding buffer of the largest batch, [N, H]; only its shape, dtype and device are used.
    """

    def __init__(self, model: Any, arrays: Arrays, embeds: torch.Tensor):
        self._model = model
        self._arrays = arrays
        self._embeds = torch.zeros_like(embeds)
        self._levels: torch.Tensor = embeds[None, :0] if model.image_encoder is None else model.image_encoder.levels
        self._is_encoded = torch.zeros(len(embeds), 1, dtype=torch.bool, device=embeds.device)
        self._rotation = None if model.image_encoder is None else model.image_encoder.rotation
        self._row_numbers = torch.arange(len(embeds), device=embeds.device)
        self._of_slot: dict[int, list[tuple[int, torch.Tensor]]] = {}

    @torch.inference_mode()
    def fill_slot(self, slot: int, prompt: Prompt) -> None:
        """Encode the audio and the images of the request in `slot`, and store the result."""
        self.forget(slot)
        if prompt.inputs:
            self._of_slot[slot] = [(model_input.first_row, self._encode(model_input)) for model_input in prompt.inputs]
        if self._rotation is not None:
            self._rotation.fill_slot(slot, prompt.images)

    def forget(self, slot: int) -> None:
        """Drop the encoded input of `slot`."""
        self._of_slot.pop(slot, None)
        if self._rotation is not None:
            self._rotation.forget(slot)

    def inputs(self, num_rows: int) -> dict[str, torch.Tensor]:
        """Return the buffers for a batch of N rows, as arguments of the model.

        Returns:
            `encoded` [N, H] and a mask `is_encoded` [N, 1] of the rows that use them; `positions` [N] if the model has
            an image encoder.
        """
        buffers = {"encoded": self._embeds[:num_rows], "is_encoded": self._is_encoded[:num_rows]}
        return buffers if self._rotation is None else buffers | {"positions": self._row_numbers[:num_rows]}

    def fill(self, batch: InputBatch) -> dict[str, torch.Tensor]:
        """Write the rows of `batch` to the buffers, and return them as `inputs` does."""
        num_rows = batch.num_tokens_after_padding
        self._is_encoded[:num_rows] = False
        self._levels[:, :num_rows] = 0
        if self._of_slot:
            self._fill_encoded(batch)
        if self._rotation is not None:
            self._rotation.fill(batch, self._upload)
        return self.inputs(num_rows)

    def _fill_encoded(self, batch: InputBatch) -> None:
        computed = batch.num_computed_tokens_np
        scheduled = batch.num_scheduled_tokens
        for index, slot in enumerate(batch.idx_mapping_np.tolist()):
            first = int(computed[index])
            begins = int(batch.query_start_loc_np[index])
            last = first + int(scheduled[index])
            for first_row, embeds in self._of_slot.pop(slot, ()):
                start = max(first, first_row)
                stop = min(last, first_row + embeds.shape[1])
                if start < stop:
                    at = slice(begins + start - first, begins + stop - first)
                    rows, *levels = embeds[:, start - first_row : stop - first_row]
                    self._embeds[at] = rows
                    self._is_encoded[at] = True
                    for level, added in zip(self._levels, levels, strict=False):
                        level[at] = added
                if last < first_row + embeds.shape[1]:
                    self._of_slot.setdefault(slot, []).append((first_row, embeds))

    def _upload(self, values: np.ndarray) -> torch.Tensor:
        return self._arrays.tensor(self._arrays.upload(values))

    def _encode(self, model_input: InputAudio | InputImage) -> torch.Tensor:
        """Return the embedded rows of audio, [1, n, H], or of an image at all levels, [1 + L, n, H]."""
        # Copied because the received buffer is read-only, which torch warns about.
        features = self._upload(model_input.features.copy())
        if isinstance(model_input, InputImage):
            encoded = self._model.image_encoder(self._model.adaptor, features, model_input.height, model_input.width)
        else:
            encoded = self._model.embed_audio(features)
        if len(encoded) != model_input.num_rows:
            expected = f"{model_input.num_rows} embedded rows for {len(model_input.features)} frames"
            raise ValueError(f"expected {expected}, got {len(encoded)}")
        levels: torch.Tensor = encoded.to(self._embeds.dtype).view(model_input.num_rows, -1, self._embeds.shape[-1])
        return levels.transpose(0, 1)
