"""Phonon language model: Pocket TTS with another activation, another norm of times, and a bias for latents."""

import torch
import torch.nn.functional as F

from stretto.engine.models.latents import activate_rows
from stretto_pocket.pocket_tts.model import StrettoPocketForCausalLM


class StrettoPhononForCausalLM(StrettoPocketForCausalLM):
    """Phonon for vLLM; selected by `architectures` in config.json."""

    has_connector_bias = True
    is_centred = False

    @staticmethod
    def activate(x: torch.Tensor) -> torch.Tensor:
        """Return GELU of x [N, H]. The result for a row is bit-identical in every batch."""
        return activate_rows(F.gelu, x)
