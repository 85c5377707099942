"""Recorder of the logits that an engine samples from."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch


class RecordedLogits:
    """Raw logits of an engine with a single reply: stream 0 [C + 1] for each row, and each other stream [C]."""

    def __init__(self, readout: Any, patch: pytest.MonkeyPatch):
        self.first, self.others = list[np.ndarray](), list[np.ndarray]()
        heads, frames = readout.heads, readout.frames

        def kept(product: Callable[..., torch.Tensor], into: list[np.ndarray]) -> Callable[..., torch.Tensor]:
            def record(hidden: torch.Tensor) -> torch.Tensor:
                logits = product(hidden)
                into.append(logits[0].numpy().copy())
                return logits

            return record

        patch.setattr(heads, "first", kept(heads.first, self.first))
        patch.setattr(frames, "_heads", [kept(head, self.others) for head in frames._heads])
