"""Effects of sampling options on the logits of stream 0 in audio, in torch and in a Triton kernel.

They apply in all families whose frames have ids, after penalties and masks, and before top-k and top-p.
"""

from collections.abc import Callable, Mapping

import torch
import triton
import triton.language as tl

from stretto.engine.columns import COLUMNS
from stretto.engine.kernels.gpu.draw import real_of

MIN_P = tl.constexpr(COLUMNS.index("min_p"))


def keep_near(logits: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """Set to -inf the logits [B, C] that are more than their row's `span` [B] below their row's maximum.

    The span is `records.sampling.logit_span`.
    """
    lowest = logits.amax(1, keepdim=True) - span[:, None]
    return logits.masked_fill(logits < lowest, -torch.inf)


# Functions of logits [B, C] and an option's column [B], keyed by the option's field, in the order of `with_options`.
LOGIT_OPTIONS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"min_p": keep_near}


@triton.jit
def with_options(values: tl.tensor, mine: tl.tensor, plan_stride: tl.constexpr) -> tl.tensor:
    """Return a row's logits after the functions of `LOGIT_OPTIONS`; `mine` is its first word in the step table."""
    lowest = tl.max(values, 0) - real_of(mine + MIN_P * plan_stride)
    return tl.where(values < lowest, float("-inf"), values)
