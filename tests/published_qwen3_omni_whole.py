"""Replies of transformers' whole Qwen3-Omni, thinker and talker, with the tensors of a small release."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3OmniMoeForConditionalGeneration

from tests.published_qwen3_omni_thinker import END


class Whole:
    """transformers' class for the whole model.

    Args:
        release: Folder of the release.
    """

    def __init__(self, release: Path) -> None:
        self._model: Any = Qwen3OmniMoeForConditionalGeneration.from_pretrained(release, dtype=torch.float32).eval()

    @torch.no_grad()
    def reply(
        self, inputs: Mapping[str, Tensor], voice: str, num_words: int, num_frames: int
    ) -> tuple[list[int], np.ndarray]:
        """Return the greedy words of the thinker, and the greedy codes of the talker [K, T].

        `generate` has no hidden states of its last id, so the talker speaks all ids but that one. The thinker is
        therefore asked for one more id than is spoken, and the talker for one more frame than is complete.

        Args:
            inputs: Inputs of the thinker.
            voice: Name of the voice.
            num_words: Maximum number of words.
            num_frames: Maximum number of frames.
        """
        taken = list[Tensor]()
        decode = self._model.code2wav.chunked_decode

        def kept(codes: Tensor, **options: Any) -> Tensor:
            taken.append(codes[0])
            return decode(codes, **options)

        self._model.code2wav.chunked_decode = kept
        try:
            ids, _ = self._model.generate(
                **inputs,
                speaker=voice,
                thinker_max_new_tokens=num_words + 1,
                thinker_eos_token_id=END,
                thinker_pad_token_id=END,
                talker_max_new_tokens=num_frames + 1,
                talker_do_sample=False,
            )
        finally:
            del self._model.code2wav.chunked_decode
        words = ids[0, inputs["input_ids"].shape[1] :].tolist()
        return [each for each in words[:num_words] if each != END], taken[0].numpy()
