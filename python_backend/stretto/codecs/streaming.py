"""Convolutions and activations for decoders of signals [B, C, n].

On a CPU, a signal may be stored as [B, n, C] (time-major, the layout of a transformer's output). In that layout, oneDNN
convolves few channels faster, and a transposed convolution is a matrix product whose rows are the output. All functions
keep the layout of their input.

For stateless codecs, this module computes receptive fields and decodes windows with context.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.base import CodecSpec, Window
from stretto.codecs.kernels.operators import runs_kernels
from stretto.codecs.kernels.sizes import Sizes
from stretto.errors import InvalidRequest

MIN_ROW = 256  # elements; for shorter rows, loop overhead exceeds the arithmetic
MIN_PRODUCT = 1 << 20  # multiplications; for smaller products, oneDNN is slower than MKL
MAX_JOINED = 1 << 21  # elements of a weight; above, one product is no faster than two and takes as much memory again


def is_time_major(x: Tensor) -> bool:
    """Return True if x [B, C, n] is stored in a CPU's memory as [B, n, C]."""
    return x.device.type == "cpu" and x.shape[1] > 1 and x.transpose(1, 2).is_contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x @ weight.T + bias`.

    Large float32 products on a CPU are computed by oneDNN, which on AMD processors takes half as long as MKL, torch's
    default.

    Args:
        x: Inputs, [..., K].
        weight: Weights, [N, K]. oneDNN is used only if they are contiguous, because it is very slow otherwise.
    """
    is_large = x.numel() * len(weight) >= MIN_PRODUCT and x.device.type == "cpu"
    if (
        is_large
        and x.dtype == weight.dtype == torch.float32
        and weight.is_contiguous()
        and torch.is_inference_mode_enabled()
        and torch.backends.mkldnn.is_available()
        and not torch.compiler.is_compiling()
    ):
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return product
    return F.linear(x, weight, bias)


Model = TypeVar("Model", bound=nn.Module)


class Linear(nn.Linear):
    """Layer that computes its product with `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def prepare_products(model: Model) -> Model:
    """Make the linear layers of a model use `linear`, compute its constants, and return the model."""
    for layer in model.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
    return join_constants(model)


def join_constants(model: Model) -> Model:
    """Compute the constants of all `WithConstants` modules in a loaded model, and return the model."""
    for layer in model.modules():
        if isinstance(layer, WithConstants):
            layer.join()
    return model


class Upsampling(nn.ConvTranspose1d):
    """Transposed convolution that `upsample` computes as one matrix product of context and inputs.

    Attributes:
        joined_weight: Weights [rate · O, (before + 1) · C] for consecutive inputs, the earliest first.
        joined_bias: Bias [rate · O] or None.
    """

    joined_weight: Tensor
    joined_bias: Tensor | None

    def join(self) -> None:
        """Set the weights and the bias of the product from the layer's, which must not change afterwards."""
        (rate,) = self.stride
        inputs, outputs, _ = self.weight.shape
        steps = self.weight.detach().view(inputs, outputs, -1, rate).flip(2)  # the earliest input comes last
        weight = steps.permute(3, 1, 2, 0).reshape(rate * outputs, -1)
        bias = None if self.bias is None else self.bias.detach().repeat(rate)
        self.register_buffer("joined_weight", weight, persistent=False)
        self.register_buffer("joined_bias", bias, persistent=False)


def prepare(model: nn.Module) -> None:
    """Prepare products; on a CPU, also prepare convolutions for `convolve` and `upsample`.

    Their weights are stored in the order that these functions need. Small transposed convolutions become `Upsampling`,
    which keeps a copy of the weights. Call this after loading, and again if weights change.
    """
    prepare_products(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d | nn.ConvTranspose1d) and layer.weight.device.type == "cpu":
            order = (0, 2, 1) if isinstance(layer, nn.Conv1d) else (2, 1, 0)  # both are their own inverse
            layer.weight.data = layer.weight.data.permute(order).contiguous().permute(order)
            is_small = layer.weight.numel() <= MAX_JOINED and layer.groups == 1
            if type(layer) is nn.ConvTranspose1d and is_small and layer.kernel_size[0] > layer.stride[0]:
                layer.__class__ = Upsampling
            if isinstance(layer, Upsampling):
                layer.join()


def joined(before: Tensor, x: Tensor, activation: "Snake | Elu | None" = None) -> Tensor:
    """Return `before` [B, C, m] followed by x [B, C, n], or by its activation, in the layout of x.

    The activation writes its output directly to the result.
    """
    if is_time_major(x) and before.dtype == x.dtype:
        both = x.new_empty(x.shape[0], before.shape[2] + x.shape[2], x.shape[1]).transpose(1, 2)
        both[:, :, : before.shape[2]] = before
        new = both[:, :, before.shape[2] :]
        _ = new.copy_(x) if activation is None else activation(x, new)
        return both
    return torch.cat([before, x if activation is None else activation(x)], 2)


def convolve(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """Return the outputs [B, O, n - (kernel - 1) · dilation] of a convolution without padding for x [B, C, n]."""
    if not is_time_major(x):
        return conv(x)
    if conv.kernel_size == (1,):
        return linear(x.transpose(1, 2), conv.weight[..., 0], conv.bias).transpose(1, 2)
    weight = conv.weight.unsqueeze(2)
    dilation = (1, *conv.dilation)
    return F.conv2d(x.unsqueeze(2), weight, conv.bias, dilation=dilation, groups=conv.groups).squeeze(2)


def upsample(x: Tensor, conv: nn.ConvTranspose1d) -> Tensor:
    """Return those outputs of a transposed convolution that do not depend on inputs after x.

    Args:
        x: Inputs, [B, C, before + n]. The first `before` are context; their outputs overlap those of the next inputs.
        conv: Transposed convolution with a kernel of (before + 1) · rate.

    Returns:
        Outputs starting at the first of the last n inputs, [B, O, n · rate].
    """
    kernel = conv.kernel_size[0]
    rate = conv.stride[0]
    before = kernel // rate - 1
    batch = x.shape[0]
    steps = x.shape[2] - before
    if not is_time_major(x) or conv.groups > 1:
        return conv(x)[..., before * rate : (before + steps) * rate]
    rows = x.transpose(1, 2)
    if isinstance(conv, Upsampling) and not torch.is_grad_enabled():  # the joined weights have no gradients
        size = x.shape[1]
        windows = rows.as_strided((batch, steps, (before + 1) * size), (rows.stride(0), size, 1))
        out = linear(windows.reshape(batch * steps, -1), conv.joined_weight, conv.joined_bias)
        return out.view(batch, steps * rate, -1).transpose(1, 2)
    inputs = [rows[:, at : at + steps].reshape(batch * steps, -1) for at in range(before, -1, -1)]
    weights = conv.weight.permute(2, 1, 0).flatten(0, 1).chunk(before + 1)  # [rate · O, C] each
    out = linear(inputs[0], weights[0], None if conv.bias is None else conv.bias.repeat(rate))
    for shifted, weight in zip(inputs[1:], weights[1:], strict=True):
        out.add_(linear(shifted.to(out.dtype), weight.to(out.dtype)))
    return out.view(batch, steps * rate, -1).transpose(1, 2)


class Elu(nn.ELU):
    """ELU activation with alpha 1 that can write its output to a given tensor."""

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the activations of x, stored in `out` if that is given; it must not share memory with x."""
        is_plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
        if not is_plain or torch.is_grad_enabled() or torch.compiler.is_compiling():  # `out` has no gradients
            activated = super().forward(x)
            return activated if out is None else out.copy_(activated)
        # F.elu may round an element differently in another chunk or layout; this rounds it equally in all of them, and
        # differs by at most 1.4e-7 in float32. On an AMD processor with AVX-512, NumPy's exponential takes 0.35 ns per
        # element, and torch's 0.67.
        out = torch.clamp(x, max=0, out=out)
        np.exp(out.numpy(), out=out.numpy())
        return torch.maximum(x, out.sub_(1), out=out)


class WithConstants(nn.Module):
    """Module with constants that `join` computes from its weights once, instead of in each call."""

    def __init__(self) -> None:
        super().__init__()
        self._is_joined = False

    def join(self) -> None:
        """Compute the constants; the weights must not change afterwards."""
        self._is_joined = True

    def _apply(self, fn: Callable[..., Tensor], recurse: bool = True) -> Self:
        """Convert the weights, as for `to` and `double`, and compute the constants again if `join` made them."""
        super()._apply(fn, recurse)
        if self._is_joined:
            self.join()
        return self


class Snake(WithConstants):
    """Snake activation x + height · sin²(rate · x) with per-channel factors (Ziyin et al., arXiv 2006.08195).

    Subclasses define `factors`.

    Attributes:
        joined_factors: Rates and heights for rows of several steps, [2, times · C]; None before `prepare`.
    """

    joined_factors: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("joined_factors", None, persistent=False)

    def join(self) -> None:
        super().join()
        factors = torch.stack(self.factors()).detach()
        self.register_buffer("joined_factors", factors.repeat(1, _max_joint(factors.shape[1])), persistent=False)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return rate and height, [C] each."""
        raise NotImplementedError

    def forward(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the activations of x [B, C, n], stored in `out` if it is given and x is time-major."""
        if not is_time_major(x):
            rate, height = self.repeated(1, x.shape[1])
            if runs_kernels(x):
                return activated_on_device(x, rate, height)
            return _snake(x, rate[:, None], height[:, None])
        joint = min(x.shape[2] & -x.shape[2], _max_joint(x.shape[1]))  # number of steps per row
        rate, height = self.repeated(joint, x.shape[1])
        out = torch.empty_like(x) if out is None else out
        rows, places = (tensor.transpose(1, 2).unflatten(1, (-1, joint)).flatten(2) for tensor in (x, out))
        _snake(rows, rate, height, places)
        return out

    def repeated(self, times: int, channels: int) -> tuple[Tensor, Tensor]:
        """Return the factors of the channels, repeated `times` times."""
        joined_factors = self.joined_factors
        if joined_factors is None or torch.is_grad_enabled():  # joined factors have no gradients
            rate, height = self.factors()
            return (rate, height) if times == 1 else (rate.repeat(times), height.repeat(times))
        rate, height = joined_factors[:, : times * channels]
        return rate, height


def activated_on_device(x: Tensor, rate: Tensor, height: Tensor) -> Tensor:
    """Return the activations of a signal [B, C, n] on a GPU, by the kernel that also filters signals."""
    rows = x.transpose(1, 2).contiguous()
    sizes = Sizes(length=x.shape[2])
    activations: Tensor
    _, activations = torch.ops.stretto.depthwise(
        rows, None, None, None, None, None, None, sizes, "snake", rate, height, False
    )
    return activations.transpose(1, 2)


def _max_joint(channels: int) -> int:
    """Return the largest number of steps that `Snake` processes as one row."""
    return 1 << (MIN_ROW // channels).bit_length()


def _snake(x: Tensor, rate: Tensor, height: Tensor, out: Tensor | None = None) -> Tensor:
    """Return x + height · sin²(rate · x), with broadcast factors."""
    if x.dtype != rate.dtype or rate.requires_grad:
        activated = sine_(x * rate).square_().mul_(height).add_(x)
        return activated if out is None else out.copy_(activated)
    y = sine_(torch.mul(x, rate, out=out)).square_()
    return torch.addcmul(x, y, height, out=y)


def sine_(x: Tensor) -> Tensor:
    """Replace x with its sines in place, and return it."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.requires_grad or torch.compiler.is_compiling():
        return x.sin_()
    np.sin(x.numpy(), out=x.numpy())  # numpy: 0.5 ns per element, error 7e-8; torch: 1.2 ns, 4e-8
    return x


@dataclass(frozen=True, slots=True)
class Conv:
    """Convolution that keeps the length: output j reads inputs j - before … j - before + dilation * (kernel - 1)."""

    kernel: int
    before: int  # zeros padded at the start
    dilation: int = 1

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """Return the first and the last input that the outputs `first` to `last` depend on."""
        return first - self.before, last - self.before + self.dilation * (self.kernel - 1)

    def length(self, length: int) -> int:
        """Return the number of outputs for `length` inputs."""
        return length


@dataclass(frozen=True, slots=True)
class Upsample:
    """Transposed convolution: input i contributes to outputs i * stride - before … i * stride - before + kernel - 1.

    Attributes:
        before: Number of outputs cut off at the start (torch's `padding`).
        after: Number of outputs cut off at the end (`padding - output_padding`).
    """

    kernel: int
    stride: int
    before: int
    after: int

    def reach(self, first: int, last: int) -> tuple[int, int]:
        """Return the first and the last input that the outputs `first` to `last` depend on."""
        return ceil((first + self.before - self.kernel + 1) / self.stride), (last + self.before) // self.stride

    def length(self, length: int) -> int:
        return (length - 1) * self.stride + self.kernel - self.before - self.after


Layer = Conv | Upsample


def same(kernel: int, dilation: int = 1) -> Conv:
    """Return a length-preserving convolution with equal look-ahead and look-back."""
    return Conv(kernel, dilation * (kernel - 1) // 2, dilation)


def dac_layers(upsampling_ratios: Iterable[int], output_padding: bool) -> list[Layer]:
    """Return the layers of transformers' DacDecoder; a block has upsampling and residual units of dilation 1, 3 and 9.

    Args:
        upsampling_ratios: Strides of the blocks, in order.
        output_padding: True if transposed convolutions of odd stride use output padding, so that each frame yields
            `stride` samples, as in decoders of the X-codec class.
    """
    layers: list[Layer] = [same(7)]
    for stride in upsampling_ratios:
        before = ceil(stride / 2)
        after = before - (stride % 2 if output_padding else 0)
        layers += [Upsample(2 * stride, stride, before, after), same(7, 1), same(7, 3), same(7, 9)]
    return [*layers, same(7)]


def samples_per_frame(layers: Sequence[Layer]) -> int:
    """Return the number of samples per frame, the product of the strides."""
    return prod(layer.stride for layer in layers if isinstance(layer, Upsample))


def reach(layers: Sequence[Layer], first: int, last: int) -> tuple[int, int]:
    """Return the first and the last frame that the samples `first` to `last` depend on."""
    for layer in reversed(layers):
        first, last = layer.reach(first, last)
    return first, last


def context(layers: Sequence[Layer]) -> tuple[int, int]:
    """Return how many frames before and after a frame its samples depend on."""
    first, last = reach(layers, 0, samples_per_frame(layers) - 1)
    return -first, last


def tail_samples(layers: Sequence[Layer]) -> int:
    """Return the number of samples by which the last frame is shorter than the others."""
    frames = 1 + sum(context(layers))
    length = frames
    for layer in layers:
        length = layer.length(length)
    return frames * samples_per_frame(layers) - length


class AlphaSnake(Snake):
    """Snake activation x + sin²(a x) / a, whose weight is a, C numbers of any shape."""

    def __init__(self, alpha: nn.Parameter) -> None:
        super().__init__()
        self.alpha = alpha

    def factors(self) -> tuple[Tensor, Tensor]:
        alpha = self.alpha.flatten()
        return alpha, 1 / (alpha + 1e-9)


def share_snake(decoder: nn.Module) -> None:
    """Replace the Snake activations in transformers' DacDecoder, which allocate a tensor per operation."""
    from transformers.models.dac.modeling_dac import Snake1d  # the decoder of other codecs never imports it

    for owner in decoder.modules():
        for name, layer in owner.named_children():
            if isinstance(layer, Snake1d):
                setattr(owner, name, AlphaSnake(layer.alpha))


class WindowedCodec(nn.Module):
    """Base class of stateless convolutional codecs; subclasses define `forward` and, to encode, `codes_of`."""

    def __init__(self, spec: CodecSpec, can_encode: bool = True) -> None:
        super().__init__()
        self.spec = spec
        self.can_encode = can_encode

    def forward(self, codes: Tensor) -> Tensor:
        """Decode the codes [B, K, T] of whole utterances to a waveform [B, n], n = spec.num_samples(T, right=0)."""
        raise NotImplementedError

    def codes_of(self, pcm: Tensor) -> Tensor:
        """Encode pcm [B, n], padded by `fit`, to codes [B, K, T]."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def initial_state(self, batch: int) -> Tensor:
        return torch.zeros(batch, 0, device=self.device)

    @torch.inference_mode()
    def decode(self, window: Window) -> tuple[Tensor, Tensor]:
        frames = window.codes.shape[2] - window.left - window.right
        start = window.left * self.spec.samples_per_frame
        pcm = self(window.codes.to(self.device))[:, start : start + self.spec.num_samples(frames, window.right)]
        return pcm.clamp(-1, 1), window.state

    @torch.inference_mode()
    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Encode a recording (see `base.Codec.encode`); raise InvalidRequest if the checkpoint has no encoder."""
        if not self.can_encode:
            raise InvalidRequest("audio", f"no audio (this checkpoint of {self.spec.name} can only decode)", "audio")
        if len(pcm) == 0:
            return np.zeros((self.spec.num_codebooks, 0), dtype=np.int64)
        samples = torch.from_numpy(pcm).to(self.device, next(self.parameters()).dtype)
        return self.codes_of(self.fit(samples)[None])[0, : self.spec.num_codebooks].cpu().numpy()

    def fit(self, samples: Tensor) -> Tensor:
        """Pad samples [n] with silence to whole frames, as transformers' `DacFeatureExtractor` does."""
        return F.pad(samples, (0, -len(samples) % self.spec.samples_per_frame))
