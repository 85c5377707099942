"""Generate a test fixture with samples from SNAC's reference decoder.

    python -m pip install --target snac --no-deps snac==1.2.1 einops
    SNAC_SRC=snac python -m lab.authors.snac_samples tests/data/snac.npz

Weights are derived from the tensor names (`lab/releases/random_orpheus.py`). Noise blocks read a cosine of
the position instead of random numbers.
"""

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from lab.releases.random_orpheus import CODES, SNAC, snac_tensor

NUM_FRAMES = 9


def main() -> None:
    sys.path.insert(0, os.environ["SNAC_SRC"])
    from snac import SNAC as Reference

    model = Reference(**SNAC).double().eval()
    model.load_state_dict({name: snac_tensor(name, tuple(each.shape)) for name, each in model.state_dict().items()})
    codes = torch.from_numpy(np.random.default_rng(5).integers(0, CODES, (1, 7, NUM_FRAMES)))
    levels = [codes[:, places].transpose(1, 2).flatten(1) for places in ([0], [1, 4], [2, 3, 5, 6])]
    with patch.object(torch, "randn", cosine), torch.no_grad():
        pcm = model.decode(levels)[0, 0]
    np.savez_compressed(Path(sys.argv[1]), codes=codes[0].numpy(), pcm=pcm.numpy())


def cosine(shape: tuple[int, ...], **options: Any) -> torch.Tensor:
    """Return a cosine of the position on the last axis, instead of random numbers."""
    return torch.arange(shape[-1]).cos().double().expand(shape)


if __name__ == "__main__":
    main()
