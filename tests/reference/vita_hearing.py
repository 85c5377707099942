"""Audio input of VITA-Audio-Plus, from the encoder that `test_hearing.py` compares with the authors' encoder."""

from collections.abc import Mapping
from pathlib import Path

import torch

from lab.releases import random_vita
from stretto.families.vita_audio.model import audio_adaptor, audio_tower, embed_audio
from stretto.family.plugin import config_at
from stretto.records.prompt import Prompt


@torch.no_grad()
def heard_by_plus(checkpoint: Path, prompt: Prompt) -> Mapping[int, torch.Tensor]:
    """Return audio rows [n, H] of the small release by their first position in the prompt."""
    audio, hidden = config_at(checkpoint)["audio_config"], random_vita.PLUS["hidden_size"]
    parts = {random_vita.TOWER: audio_tower(audio), random_vita.ADAPTOR: audio_adaptor(audio, hidden)}
    for prefix, part in parts.items():
        weights = {name: torch.from_numpy(value) for name, value in random_vita.encoder_tensors(hidden).items()}
        part.load_state_dict({name: weights[f"{prefix}{name}"] for name in part.state_dict()})
    return {
        each.first_row: embed_audio(*parts.values(), torch.from_numpy(each.features)).double() for each in prompt.audios
    }
