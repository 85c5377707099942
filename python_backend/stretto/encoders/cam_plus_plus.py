"""CAM++ speaker encoder: recordings to x-vectors.

Modules and tensors are named as in `campplus_cn_common.bin` in https://huggingface.co/funasr/campplus. Reference:
https://github.com/modelscope/3D-Speaker (Apache-2.0).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.encoders.voice_spectra import fbank


class _Norm(nn.Module):
    """Batch normalisation with stored statistics, for [B, C, ...], with or without weight and bias."""

    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, channels: int, is_affine: bool = True):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        for name in ("weight", "bias"):
            self.register_parameter(name, nn.Parameter(torch.ones(channels)) if is_affine else None)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.get_buffer("running_mean"), self.get_buffer("running_var"), self.weight, self.bias)


def _norm(channels: int, is_affine: bool = True) -> nn.Module:
    """Return a module with a `_Norm` called `batchnorm`."""
    return nn.ModuleDict({"batchnorm": _Norm(channels, is_affine)})


def _active(norm: nn.Module, x: Tensor) -> Tensor:
    """Normalise x with `norm`, a module from `_norm`, and apply ReLU."""
    return F.relu(norm.get_submodule("batchnorm")(x))


class _ResidualBlock(nn.Module):
    """Two convolutions over bands and time, [B, C, bands, T], with a residual connection."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, (stride, 1), 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn1 = _Norm(channels)
        self.bn2 = _Norm(channels)
        self.shortcut = nn.Sequential()
        if stride > 1:
            self.shortcut.extend([nn.Conv2d(channels, channels, 1, (stride, 1), bias=False), _Norm(channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the output [B, C, bands / stride, T] for an input [B, C, bands, T]."""
        residual = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(residual + self.shortcut(x))


class _BandReduction(nn.Module):
    """First part of CAM++, which reduces bands [B, bands, T] to [B, channels * bands / 8, T]."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(1, channels, 3, 1, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, (2, 1), 1, bias=False)
        self.bn1 = _Norm(channels)
        self.bn2 = _Norm(channels)
        for name in ("layer1", "layer2"):
            self.add_module(name, nn.Sequential(_ResidualBlock(channels, 2), _ResidualBlock(channels, 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x[:, None])))
        x = self.get_submodule("layer2")(self.get_submodule("layer1")(x))
        return F.relu(self.bn2(self.conv2(x))).flatten(1, 2)


SEGMENT = 100  # frames


class _MaskedConv(nn.Module):
    """Convolution over time, multiplied by a mask computed from means over all frames and over segments (CAM)."""

    def __init__(self, width: int, growth: int, dilation: int):
        super().__init__()
        self.linear_local = nn.Conv1d(width, growth, 3, padding=dilation, dilation=dilation, bias=False)
        self.linear1 = nn.Conv1d(width, width // 2, 1)
        self.linear2 = nn.Conv1d(width // 2, growth, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve x [B, width, T] and multiply by the mask; return [B, growth, T]."""
        means = F.avg_pool1d(x, SEGMENT, SEGMENT, ceil_mode=True).repeat_interleave(SEGMENT, 2)[..., : x.shape[2]]
        context = F.relu(self.linear1(x.mean(2, keepdim=True) + means))
        return self.linear_local(x) * self.linear2(context).sigmoid()


class _DenseLayer(nn.Module):
    """Layer of a dense block: its output is appended to the channels of its input."""

    def __init__(self, channels: int, width: int, growth: int, dilation: int):
        super().__init__()
        self.nonlinear1 = _norm(channels)
        self.nonlinear2 = _norm(width)
        self.linear1 = nn.Conv1d(channels, width, 1, bias=False)
        self.cam_layer = _MaskedConv(width, growth, dilation)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C + growth, T] for x [B, C, T]."""
        narrowed = _active(self.nonlinear2, self.linear1(_active(self.nonlinear1, x)))
        return torch.cat([x, self.cam_layer(narrowed)], 1)


class _NormedConv(nn.Module):
    """Convolution `linear` and norm `nonlinear`; the caller decides which is applied first."""

    def __init__(self, convolution: nn.Conv1d, norm: nn.Module):
        super().__init__()
        self.linear = convolution
        self.nonlinear = norm


BANDS = 80
BAND_CHANNELS = 32
CHANNELS = 128
GROWTH = 32
DENSE_WIDTH = 128
BLOCKS = ((12, 1), (24, 2), (16, 2))  # layers and dilation of the dense blocks


class CamPlusPlus(nn.Module):
    """CAM++ speaker encoder, which converts recordings at 16 kHz to x-vectors of size `width`."""

    def __init__(self, width: int):
        super().__init__()
        self.head = _BandReduction(BAND_CHANNELS)
        size = BAND_CHANNELS * BANDS // 8
        self.xvector = nn.Module()
        convolution = nn.Conv1d(size, CHANNELS, 5, stride=2, padding=2, bias=False)
        self.xvector.add_module("tdnn", _NormedConv(convolution, _norm(CHANNELS)))
        size = CHANNELS
        for number, (num_layers, dilation) in enumerate(BLOCKS, 1):
            layers = [_DenseLayer(size + GROWTH * at, DENSE_WIDTH, GROWTH, dilation) for at in range(num_layers)]
            named = {f"tdnnd{at}": layer for at, layer in enumerate(layers, 1)}
            self.xvector.add_module(f"block{number}", nn.ModuleDict(named))
            size += GROWTH * num_layers
            halving = _NormedConv(nn.Conv1d(size, size // 2, 1, bias=False), _norm(size))
            self.xvector.add_module(f"transit{number}", halving)
            size //= 2
        self.xvector.add_module("out_nonlinear", _norm(size))
        last = _NormedConv(nn.Conv1d(2 * size, width, 1, bias=False), _norm(width, is_affine=False))
        self.xvector.add_module("dense", last)

    def encode(self, pcm: Tensor) -> Tensor:
        """Return the x-vector, float32 [E], of samples [n] at 16 kHz in [-1, 1], n >= 1000."""
        bands = fbank(pcm, BANDS)
        submodule = self.xvector.get_submodule
        x = self.head((bands - bands.mean(0)).T[None])
        x = _active(submodule("tdnn.nonlinear"), submodule("tdnn.linear")(x))
        for number in range(1, len(BLOCKS) + 1):
            for layer in submodule(f"block{number}").children():
                x = layer(x)
            x = submodule(f"transit{number}.linear")(_active(submodule(f"transit{number}.nonlinear"), x))
        x = _active(submodule("out_nonlinear"), x)
        pooled = torch.cat([x.mean(2), x.std(2)], 1)[..., None]
        return submodule("dense.nonlinear.batchnorm")(submodule("dense.linear")(pooled))[0, :, 0]
