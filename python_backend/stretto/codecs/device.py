"""Layers of codecs on a GPU. A layer and the operations after it are one kernel launch.

Signals are [B, C, n], as elsewhere, but stored as rows of channels, [B, n, C].
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.kernels.operators import PRECISION
from stretto.codecs.kernels.sizes import IEEE, Sizes
from stretto.codecs.streaming import Elu, Snake

Convolving = nn.Conv1d | nn.ConvTranspose1d
State = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
NO_STATE: State = (None, None, None, None)
NO_NORM: tuple[Tensor | None, Tensor | None, float] = (None, None, 0.0)
MIN_CHANNELS = 8  # tensor cores compute tiles of eight channels


@dataclass(frozen=True, slots=True)
class StatePart:
    """State of one layer before and after a window.

    Attributes:
        before: Last inputs before the window, [B, D], or a table of all utterances, [R, D]; None if they are zeros.
        after: Last inputs of the window, with the same shape; written. None if they are not needed.
        again: Number of new inputs at the end that the next window contains again.
        first: Index of the first frame of each utterance, [B].
        late: Number of inputs at an utterance's start that count as zeros.
        rows: Indices of the utterances' rows in the tables `before` and `after`, [2, B]; None without tables.
    """

    before: Tensor | None
    after: Tensor | None
    again: int
    first: Tensor | None
    late: int = 0
    rows: Tensor | None = None

    def tensors(self) -> State:
        """Return the state before and after, the first frames if there are late inputs, and the rows."""
        return self.before, self.after, self.first if self.late else None, self.rows


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary embedding of queries and keys.

    Attributes:
        cosines: Cosines of n steps, [B, n, head_dim / 2].
        num_rotated: Number of columns of queries and keys, before those of the values.
        is_paired: True if adjacent coordinates are pairs; False if pairs are coordinates half a head apart.
    """

    cosines: Tensor
    sines: Tensor
    num_rotated: int
    is_paired: bool


@dataclass(frozen=True, slots=True)
class Ending:
    """Operations that a kernel launch applies to the sums of a layer.

    Attributes:
        gain: Factor of each output, [O], or None.
        residual: Signal that is added afterwards, [B, O, n], or None.
        activation: Activation of the sums, or its name in `multiply_on_device`.
        keeps_sums: True if the sums are needed without their activation.
    """

    gain: Tensor | None = None
    residual: Tensor | None = None
    activation: Snake | Elu | Rotation | str | None = None
    keeps_sums: bool = True

    def arguments(self, num_outputs: int) -> tuple[str, Tensor | None, Tensor | None, bool]:
        """Return the activation's name and factors, and `keeps_sums`, for a kernel."""
        if isinstance(self.activation, Snake):
            rate, height = self.activation.repeated(1, num_outputs)
            return "snake", rate, height, self.keeps_sums
        if isinstance(self.activation, Rotation):
            name = "pairs" if self.activation.is_paired else "halves"
            return name, self.activation.cosines, self.activation.sines, self.keeps_sums
        name = "elu" if isinstance(self.activation, Elu) else self.activation or ""
        return name, None, None, self.keeps_sums


PLAIN = Ending()


@dataclass(frozen=True, slots=True)
class Norm:
    """Norm of the inputs of a linear layer: RMSNorm or, with a bias, LayerNorm; both tensors are [C]."""

    weight: Tensor
    bias: Tensor | None
    eps: float


def norm_of(layer: nn.RMSNorm | nn.LayerNorm) -> Norm:
    """Return the weights and the epsilon of a norm of torch."""
    assert layer.eps is not None
    return Norm(layer.weight, getattr(layer, "bias", None), layer.eps)


def is_supported(conv: Convolving) -> bool:
    """Return True if `convolve` supports a layer: all channels are one group, or each channel is a group."""
    return conv.groups in {1, conv.in_channels} and (conv.groups == 1 or conv.in_channels == conv.out_channels)


def rows_of(x: Tensor) -> Tensor:
    """Return the rows [B, n, C] of a signal [B, C, n], without a copy if it is stored as rows."""
    return x.transpose(1, 2).contiguous()


def convolve(
    x: Tensor, conv: Convolving, state: StatePart | None = None, ending: Ending = PLAIN
) -> tuple[Tensor, Tensor]:
    """Return the outputs of a convolution and their activations, [B, O, n] each; a result that is not needed is empty.

    Args:
        x: Inputs, [B, C, n].
        conv: Convolution, or transposed convolution without dilation, that `is_supported` accepts.
        state: State of a causal layer, which replaces its padding; None to pad as torch does.
    """
    sizes = sizes_of(x.shape[2], conv) if state is None else causal_sizes(x, conv, state)
    tensors = NO_STATE if state is None else state.tensors()
    activation = ending.arguments(conv.out_channels)
    rows = rows_of(x)
    if conv.groups > 1:
        assert ending.gain is ending.residual is None
        weight = conv.weight[:, 0]
        results = torch.ops.stretto.depthwise(rows, weight, conv.bias, *tensors, sizes, *activation)
        return _signals(*results)
    is_narrow = min(conv.in_channels, conv.out_channels) < MIN_CHANNELS
    precision = IEEE if is_narrow else PRECISION.get()
    residual = None if ending.residual is None else rows_of(ending.residual)
    results = torch.ops.stretto.product(
        rows, taps_of(conv), conv.bias, *tensors, sizes, *NO_NORM, ending.gain, residual, *activation, precision
    )
    return _signals(*results)


def product(rows: Tensor, weight: Tensor, bias: Tensor | None, sizes: Sizes, precision: str) -> Tensor:
    """Return the convolution [B, length, O] of rows [B, n, C] with a weight [k, rate · O, C], without activation."""
    activation = PLAIN.arguments(len(weight))
    sums: Tensor
    sums, _ = torch.ops.stretto.product(
        rows, weight, bias, *NO_STATE, sizes, *NO_NORM, None, None, *activation, precision
    )
    return sums


def multiply(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: Norm | None = None,
    ending: Ending = PLAIN,
) -> Tensor:
    """Return the outputs of a linear layer, or their activations if `ending` has one, [B, n, O].

    In modes that round the operands of convolutions, linear layers use `tf32x3`, which does not round theirs.

    Args:
        x: Inputs, [B, n, C].
        weight: Weight, [O, C].
        ending: Operations after the sums; its residual is [B, n, O].
    """
    activation = replace(ending, keeps_sums=ending.activation is None).arguments(len(weight))
    norms = NO_NORM if norm is None else (norm.weight, norm.bias, norm.eps)
    precision = IEEE if PRECISION.get() == IEEE else "tf32x3"
    sizes = Sizes(length=x.shape[1])
    if isinstance(ending.activation, Rotation):
        head_dim = 2 * ending.activation.cosines.shape[2]
        sizes = sizes._replace(num_rotated=ending.activation.num_rotated, head_dim=head_dim)
    sums, activations = torch.ops.stretto.product(
        x.contiguous(),
        weight[None],
        bias,
        *NO_STATE,
        sizes,
        *norms,
        ending.gain,
        ending.residual,
        *activation,
        precision,
    )
    result: Tensor = sums if ending.activation is None else activations
    return result


@dataclass(frozen=True, slots=True)
class JointCodebooks:
    """Codebooks whose entries are projected and then added, as one table and one linear layer.

    Attributes:
        entries: Entries of all codebooks, [K, size, C].
        weight: Weights of all projections, [O, K · C].
        biases: Sums of the biases of the first 1 to K projections, [K, O].
    """

    entries: Tensor
    weight: Tensor
    biases: Tensor

    def sum_of(self, codes: Tensor, last_code: int) -> Tensor:
        """Return the sums [B, n, O] of the projected entries of codes [B, K, n], in two launches.

        Args:
            last_code: Code that replaces higher codes in codebooks after the first.
        """
        num_books = codes.shape[1]
        rows = torch.ops.stretto.sum_entries(codes, self.entries, 1, 1, last_code, 1.0)
        return multiply(rows, self.weight[:, : rows.shape[2]], self.biases[num_books - 1])


def joint_codebooks(tables: Sequence[Tensor], projections: Sequence[nn.Linear]) -> JointCodebooks:
    """Join codebooks, each with its projection; smaller ones are padded to the size of the largest."""
    size = max(len(table) for table in tables)
    with torch.inference_mode(False), torch.no_grad():
        entries = torch.stack([F.pad(table, (0, 0, 0, size - len(table))) for table in tables])
        weight = torch.cat([projection.weight for projection in projections], 1)
        biases = torch.stack([projection.bias for projection in projections]).cumsum(0)
    return JointCodebooks(entries, weight, biases)


@dataclass(frozen=True, slots=True)
class SplitCodebooks:
    """Codebooks in two groups. The entries of each group are summed, and then projected.

    Attributes:
        entries: Entries of all codebooks, [K, size, C].
        weight: Weights of both projections, [O, 2 · C].
    """

    entries: Tensor
    weight: Tensor

    def sum_of(self, codes: Tensor, num_first: int) -> Tensor:
        """Return the projected sums [B, O, n] of codes [B, K, n], in two launches."""
        num_books = codes.shape[1]
        num_others = max(1, num_books - num_first)
        last_code = self.entries.shape[1] - 1
        sums = torch.ops.stretto.sum_entries(codes, self.entries, min(num_first, num_books), num_others, last_code, 1.0)
        return multiply(sums, self.weight[:, : sums.shape[2]]).transpose(1, 2)


def split_codebooks(tables: Sequence[Tensor], projections: Sequence[nn.Conv1d]) -> SplitCodebooks:
    """Join codebooks [size, C] of two groups. The projections then share the memory of the joined weight."""
    with torch.inference_mode(False), torch.no_grad():
        entries = torch.stack([table.detach() for table in tables])
        weight = torch.cat([projection.weight.detach()[..., 0] for projection in projections], 1)
        for projection, part in zip(projections, weight.chunk(2, 1), strict=True):
            projection.weight.data = part[..., None]
    return SplitCodebooks(entries, weight)


def _signals(sums: Tensor, activations: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows [B, n, C] as signals [B, C, n]; an unused result, which has another shape, stays unchanged."""
    if sums.dim() == 3:
        sums = sums.transpose(1, 2)
    if activations.dim() == 3:
        activations = activations.transpose(1, 2)
    return sums, activations


def causal_sizes(x: Tensor, conv: Convolving, state: StatePart) -> Sizes:
    """Return the sizes of a causal layer whose padding is its state."""
    (kernel,) = conv.kernel_size
    (rate,) = conv.stride
    (dilation,) = conv.dilation
    if isinstance(conv, nn.ConvTranspose1d):
        return Sizes(x.shape[2] * rate, kernel // rate - 1, state.again, state.late, is_transposed=True, rate=rate)
    before = (kernel - 1) * dilation + 1 - rate
    return Sizes(x.shape[2] // rate, before, state.again, state.late, dilation, stride=rate)


def sizes_of(num_inputs: int, conv: Convolving) -> Sizes:
    """Return the sizes of a layer whose padding is torch's, and not its state as in `causal_sizes`."""
    (kernel,) = conv.kernel_size
    padding = int(conv.padding[0])
    if isinstance(conv, nn.ConvTranspose1d):
        return transposed_sizes(num_inputs, kernel, conv.stride[0], padding, conv.output_padding[0])
    return padded_sizes(num_inputs, kernel, padding, conv.dilation[0])


def padded_sizes(num_inputs: int, kernel: int, padding: int, dilation: int) -> Sizes:
    """Return the sizes of a convolution whose inputs are padded with zeros at both ends."""
    return Sizes(num_inputs + 2 * padding - (kernel - 1) * dilation, padding, dilation=dilation)


def transposed_sizes(num_inputs: int, kernel: int, rate: int, padding: int, output_padding: int) -> Sizes:
    """Return the sizes of a transposed convolution whose outputs are cut off at both ends."""
    length = (num_inputs - 1) * rate - 2 * padding + kernel + output_padding
    return Sizes(length, -(-kernel // rate) - 1, is_transposed=True, rate=rate, trim=padding)


def taps_of(conv: Convolving) -> Tensor:
    """Return the weight of a layer in the order of the kernel, [k, rate · O, C].

    The first call stores the layer's weight in this order, as `streaming.prepare` does; later ones copy nothing.
    """
    is_transposed = isinstance(conv, nn.ConvTranspose1d)
    order = (2, 1, 0) if is_transposed else (0, 2, 1)  # both are their own inverse
    if not conv.weight.permute(order).is_contiguous():
        with torch.inference_mode(False), torch.no_grad():
            conv.weight.data = conv.weight.detach().permute(order).contiguous().permute(order)
    if is_transposed:
        return packed_taps(conv.weight.permute(order), conv.stride[0])
    return conv.weight.permute(2, 0, 1)


def packed_taps(taps: Tensor, rate: int) -> Tensor:
    """Merge each `rate` taps [k, O, C] into one with all outputs of a step, [ceil(k / rate), rate · O, C]."""
    missing = -len(taps) % rate
    if missing:  # a copy; no layer of a served codec with a state has such a kernel
        taps = torch.cat([taps, taps.new_zeros(missing, *taps.shape[1:])])
    return taps.unflatten(0, (-1, rate)).flatten(1, 2)


def joined_weight(layers: Sequence[nn.Linear], is_interleaved: bool = False) -> Tensor:
    """Return the weights of linear layers with the same inputs as one weight; the layers then share its memory.

    Args:
        is_interleaved: True to alternate the rows of the layers instead of concatenating their weights.
    """
    weights = [layer.weight for layer in layers]
    joint: Tensor | None = getattr(layers[0], "_joint", None)
    if joint is not None and joint.device == weights[0].device and joint.data_ptr() == weights[0].data_ptr():
        return joint
    with torch.inference_mode(False), torch.no_grad():
        if is_interleaved:
            joint = torch.stack(weights, 1).flatten(0, 1)
            parts = joint.unflatten(0, (-1, len(weights))).unbind(1)
        else:
            joint = torch.cat(weights)
            parts = joint.split([len(weight) for weight in weights])
        for weight, memory in zip(weights, parts, strict=True):
            weight.data = memory
    layers[0]._joint = joint
    return joint


@dataclass(frozen=True, slots=True)
class Window:
    """Positions and rotary embedding of consecutive transformer steps.

    Attributes:
        first: Position of the first step, [B].
        cosines: Cosines of the rotary embedding, [B, n, head_dim / 2].
    """

    first: Tensor
    cosines: Tensor
    sines: Tensor


def window_of(first: Tensor, num_steps: int, frequencies: Tensor) -> Window:
    """Return the positions and rotations of steps from `first` [B] on, for frequencies [head_dim / 2]."""
    cosines, sines = torch.ops.stretto.rotation(first, frequencies, num_steps)
    return Window(first, cosines, sines)


@dataclass(frozen=True, slots=True)
class Heads:
    """Sizes of an attention layer.

    Attributes:
        width: Size of a head, a power of two.
        before: Number of earlier steps that a step attends to.
        is_paired: As in `Rotation`.
    """

    number: int
    num_kv: int
    width: int
    before: int
    is_paired: bool


def can_attend(heads: Heads) -> bool:
    """Return True if the attention kernels support heads of this width."""
    return heads.width in (4, 8, 16, 32, 64, 128)


def attend(
    x: Tensor,
    norm: Norm,
    weight: Tensor,
    heads: Heads,
    window: Window,
    state: StatePart,
    last: tuple[nn.Linear, Tensor | None],
) -> Tensor:
    """Return the steps [B, n, C] after an attention layer with its norm and residual, in three launches.

    Args:
        x: Steps, [B, n, C].
        weight: Weight of queries, keys and values, [(number + 2 · num_kv) · width, C].
        state: The last keys and values, [B, before · 2 · num_kv · width].
        last: Layer of the outputs, without a bias, and its gain, [C] or None.
    """
    num_rotated = (heads.number + heads.num_kv) * heads.width
    rotation = Rotation(window.cosines, window.sines, num_rotated, heads.is_paired)
    rows = multiply(x, weight, None, norm, Ending(activation=rotation))
    attended: Tensor = torch.ops.stretto.attend(
        rows, state.before, state.after, window.first, state.rows, heads.before, heads.number, heads.num_kv
    )
    layer, gain = last
    return multiply(attended, layer.weight, ending=Ending(gain=gain, residual=x))
