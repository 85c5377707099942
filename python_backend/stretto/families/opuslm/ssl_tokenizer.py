"""OpusLM's semantic codes of audio: XEUS, and the nearest k-means centre of each feature.

An optional part of a checkpoint: the folder `ssl_tokenizer/`, which `stretto convert` writes from
https://huggingface.co/espnet/xeus. A checkpoint without it accepts audio only as codes.

As in OpusLM's own data, the features are those of layer 18, counted from 0, which is the last, after the encoder's
final norm (`ESPnetHubertFeatureReader` in egs2/TEMPLATE/asr1/pyscripts/feats/ssl_feature_utils.py, recipes of OpusLM's
branch). No frame is masked. A code is the index of the nearest centre by Euclidean distance (dump_km_label.py there).
"""

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stretto.codec.strict_loading import load_strictly
from stretto.errors import CheckpointError
from stretto.families.opuslm.xeus import Xeus
from stretto.families.opuslm.xeus_config import XeusConfig
from stretto.untrusted_files import UNPARSABLE, json_object, regular_file

FOLDER, CONFIG, WEIGHTS = "ssl_tokenizer", "config.json", "model.safetensors"


class SslTokenizer(Protocol):
    """Encoder of audio to semantic codes, 50 per second."""

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Return codes [T] int64 of mono `pcm` [n] float32 at 16 kHz.

        T is about n / 320, and 0 for less than one window.
        """
        ...


class XeusTokenizer(nn.Module):
    """XEUS with `centres` [C, H] of its features."""

    centres: Tensor

    def __init__(self, config: XeusConfig, num_codes: int) -> None:
        super().__init__()
        self.config, self.xeus = config, Xeus(config)
        self.register_buffer("centres", torch.zeros(num_codes, config.hidden))

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode as `SslTokenizer.encode`; T is `config.num_frames(n)`."""
        if self.config.num_frames(len(pcm)) == 0:
            return np.zeros(0, np.int64)
        features = self.xeus(torch.from_numpy(np.asarray(pcm)).to(self.centres))
        # without the term common to all centres
        distances = self.centres.square().sum(1) - 2 * features @ self.centres.T
        return distances.argmin(1).cpu().numpy()


def load_ssl_tokenizer(checkpoint: Path, num_codes: int, device: str = "cpu") -> SslTokenizer | None:
    """Return the tokenizer of the checkpoint in a folder; None if the checkpoint has none.

    Args:
        checkpoint: Folder of the checkpoint.
        num_codes: Number of codes.
        device: Device to load it on.

    Raises:
        CheckpointError: If files or tensors are missing, unknown or of another shape.
    """
    folder = checkpoint / FOLDER
    if not folder.is_dir():
        return None
    try:
        config = XeusConfig.from_record(json_object(folder / CONFIG))
        tensors = load_file(regular_file(folder / WEIGHTS))
    except (CheckpointError, OSError, SafetensorError, *UNPARSABLE) as error:
        raise CheckpointError(f"{folder}: expected {CONFIG} and {WEIGHTS} of XEUS, got {error!r}") from error
    with torch.device("meta"):
        tokenizer = XeusTokenizer(config, num_codes)
    load_strictly(tokenizer, tensors, folder, assign=True)
    return tokenizer.eval().requires_grad_(False).to(device)
