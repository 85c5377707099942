"""Convolutions and activations of decoders, for signals [B, C, n].

On a CPU a signal may be stored as [B, n, C] (time-major, the layout of a transformer's output). oneDNN convolves few
channels faster in that layout, and a transposed convolution is a matrix product whose rows are the output. All
functions keep the layout of their input.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MIN_ROW = 256  # elements; loops over shorter rows take longer than their arithmetic


def is_time_major(x: Tensor) -> bool:
    """Return True if x [B, C, n] is stored in a CPU's memory as [B, n, C]."""
    return x.device.type == "cpu" and x.shape[1] > 1 and x.transpose(1, 2).is_contiguous()


def prepare(model: nn.Module) -> None:
    """Store the weights of convolutions on a CPU in the order in which `convolve` and `upsample` read them."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and layer.weight.device.type == "cpu":
            layer.weight.data = layer.weight.data.transpose(1, 2).contiguous().transpose(1, 2)


def joined(before: Tensor, x: Tensor, activation: "Snake | Elu | None" = None) -> Tensor:
    """Return `before` followed by the activation of x, or by x itself, in the layout of x.

    Args:
        before: Earlier inputs, [B, C, m].
        x: Inputs, [B, C, n].
        activation: Activation of x, which writes its output to the result.

    Returns:
        Both, [B, C, m + n].
    """
    if is_time_major(x) and before.dtype == x.dtype:
        both = x.new_empty(x.shape[0], before.shape[2] + x.shape[2], x.shape[1]).transpose(1, 2)
        both[:, :, : before.shape[2]] = before
        place = both[:, :, before.shape[2] :]
        _ = place.copy_(x) if activation is None else activation(x, place)
        return both
    return torch.cat([before, x if activation is None else activation(x)], 2)


def convolve(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Return the outputs [B, O, n - (kernel - 1) · dilation] of a convolution without padding for x [B, C, n]."""
    if not is_time_major(x):
        return conv(x)
    if conv.kernel_size == (1,):
        return F.linear(x.transpose(1, 2), conv.weight[..., 0], conv.bias).transpose(1, 2)
    weight, dilation = conv.weight.unsqueeze(2), (1, *conv.dilation)
    return F.conv2d(x.unsqueeze(2), weight, conv.bias, dilation=dilation, groups=conv.groups).squeeze(2)


def upsample(x: Tensor, conv: nn.ConvTranspose1d) -> Tensor:
    """Return the outputs of a transposed convolution that later inputs do not affect.

    Args:
        x: Inputs, [B, C, before + n], of which the first `before` affect outputs of the next one.
        conv: Transposed convolution with a kernel of (before + 1) · rate.

    Returns:
        Outputs that begin with those of the last n inputs, [B, O, n · rate].
    """
    (kernel,), (rate,) = conv.kernel_size, conv.stride
    before = kernel // rate - 1
    batch, steps = x.shape[0], x.shape[2] - before
    if not is_time_major(x) or conv.groups > 1:
        return conv(x)[..., before * rate : (before + steps) * rate]
    rows = x.transpose(1, 2)
    inputs = [rows[:, at : at + steps].reshape(batch * steps, -1) for at in range(before, -1, -1)]
    weights = conv.weight.transpose(1, 2).flatten(1).chunk(before + 1, 1)  # [C, rate · O] each
    bias = torch.zeros_like(conv.weight[0, :, 0]) if conv.bias is None else conv.bias
    out = torch.addmm(bias.repeat(rate), inputs[0], weights[0])
    for each, weight in zip(inputs[1:], weights[1:], strict=True):
        out.addmm_(each.to(out.dtype), weight.to(out.dtype))
    return out.view(batch, steps * rate, -1).transpose(1, 2)


class Elu(nn.ELU):
    """ELU activation, which can write its output to a given tensor."""

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the activations of x, in `out` if that is given."""
        return super().forward(x) if out is None else torch.ops.aten.elu.out(x, out=out)


class Snake(nn.Module):
    """Snake activation x + height · sin²(rate · x) with factors per channel (Ziyin et al., arXiv 2006.08195).

    Subclasses define `factors`.
    """

    _repeated: tuple[object, Tensor, Tensor] = (None, torch.empty(0), torch.empty(0))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return rate and height, [C] each."""
        raise NotImplementedError

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the activations of x [B, C, n], in `out` if x is time-major and that is given."""
        if not is_time_major(x):
            rate, height = self.factors()
            return _snake(x, rate[:, None], height[:, None])
        joint = min(x.shape[2] & -x.shape[2], 1 << (MIN_ROW // x.shape[1]).bit_length())  # steps in a row
        rate, height = self._repeat(joint)
        out = torch.empty_like(x) if out is None else out
        rows, places = (each.transpose(1, 2).unflatten(1, (-1, joint)).flatten(2) for each in (x, out))
        _snake(rows, rate, height, places)
        return out

    def _repeat(self, times: int) -> tuple[Tensor, Tensor]:
        """Return the factors, repeated; they are computed again only if a weight or `times` has changed."""
        state = (times, *((each.data_ptr(), each._version, each.dtype) for each in self.parameters()))
        if self._repeated[0] != state:
            rate, height = self.factors()
            self._repeated = (state, rate.repeat(times), height.repeat(times))
        return self._repeated[1:]


def _snake(x: Tensor, rate: Tensor, height: Tensor, out: Tensor | None = None) -> Tensor:
    """Return x + height · sin²(rate · x) for factors that are broadcast."""
    if x.dtype != rate.dtype or rate.requires_grad:
        made = sine_(x * rate).square_().mul_(height).add_(x)
        return made if out is None else out.copy_(made)
    y = sine_(torch.mul(x, rate, out=out)).square_()
    return torch.addcmul(x, y, height, out=y)


def sine_(x: Tensor) -> Tensor:
    """Return the sines of x, in place."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad or torch.compiler.is_compiling():
        return x.sin_()
    np.sin(x.numpy(), out=x.numpy())  # 0.5 ns per element and within 7e-8; torch's 1.2 ns and 4e-8
    return x
