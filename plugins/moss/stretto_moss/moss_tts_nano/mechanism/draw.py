"""Repetition penalty on the codes of a whole reply, without one on stream 0."""

from typing import ClassVar

import torch

from stretto.engine.kernels.gpu.step_draw import SAMPLING_FUNCTIONS
from stretto.engine.worker.segment_state import Rows
from stretto.engine.worker.slots import Array
from stretto_moss.moss_tts_realtime.mechanism.draw import RecentDraw, RecentProgram


class CodeDraw(RecentDraw):
    """Sampler of rows with the penalty on codes, in numpy or torch."""

    def penalized(self, logits: torch.Tensor, rows: Rows, index: Array | None) -> torch.Tensor:
        """Return the logits of stream 0 unchanged (`RowDraw.penalized`)."""
        return logits


class CodeProgram(RecentProgram):
    """Kernel launches that sample a step with the penalty on codes."""

    sampling_functions: ClassVar = SAMPLING_FUNCTIONS
