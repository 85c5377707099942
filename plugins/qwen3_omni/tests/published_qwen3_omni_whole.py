"""Replies of transformers' whole Qwen3-Omni, thinker and talker, with the tensors of a small release."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen3OmniMoeForConditionalGeneration

from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import END


class Whole:
    """transformers' class for the whole model.

    Args:
        release: Folder of the release.

    Attributes:
        states: Hidden states of the thinker that the talker read in the last reply, float32 [n, W].
        positions: Positions of the talker's prompt in the last reply, int64 [3, P].
    """

    def __init__(self, release: Path) -> None:
        self.states, self.positions = np.zeros((0, 1), np.float32), np.zeros((3, 0), np.int64)
        self._model: Any = Qwen3OmniMoeForConditionalGeneration.from_pretrained(release, dtype=torch.float32).eval()
        # The talker's positions of audio beside images need it, but its configuration lacks it, as of transformers 5.
        self._model.talker.config.audio_config = self._model.thinker.config.audio_config
        self._model.talker.hidden_projection.register_forward_pre_hook(self._keep_states)
        self._model.talker.model.register_forward_pre_hook(self._keep_positions, with_kwargs=True)

    def _keep_states(self, _: Any, inputs: tuple[Tensor]) -> None:
        self.states = inputs[0].numpy()

    def _keep_positions(self, _: Any, __: tuple[()], inputs: dict[str, Tensor]) -> None:
        if inputs["inputs_embeds"].shape[1] > 1:  # the prompt
            self.positions = inputs["position_ids"][-3:, 0].long().numpy()

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
