"""Memory that the decoder needs on a GPU, measured with torch's device `meta`, which computes shapes but no values."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stretto.codecs.base import Codec, CodecSpec, Window
from stretto.codecs.seanet import LENGTHS
from stretto.config import DecoderConfig
from stretto.decoder.launching import num_in_flight, windows_of
from stretto.decoder.windows import FrameWindow, Windower
from stretto.decoding.convolutions import Convolutions, check_mode, convolutions_in
from stretto.decoding.graphs import FIRST_BATCH_S, MAX_BATCH_S, batch_limit
from stretto.decoding.states import NUM_RESERVED, decode_in_rows
from stretto.errors import CheckpointError
from stretto.machine.sizing import DECODER_LIBRARY_BYTES, WORKSPACE_BYTES
from stretto.streams.chunking import ChunkPolicy

META = torch.device("meta")
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class DecoderMemory:
    """Memory of a decoder process on a GPU, in bytes.

    Attributes:
        weights: Weights of the codec with its encoder, and those converted for other convolutions.
        static: Codec states after the batches in flight (`CudaLauncher`).
        peak: Largest total size of the tensors that exist at the same time while a batch is decoded.
        first_peak: The same for a batch of first chunks, which have a lane of their own if there are graphs.
        utterances: Codec states of `max_utterances` utterances.
        references: Limit of the cache of states after voice references.
    """

    weights: int
    static: int
    peak: int
    first_peak: int
    utterance: int
    utterances: int
    references: int

    @property
    def activations(self) -> int:
        """Activations of all lanes, twice, because batches with and without a graph share no memory."""
        return 2 * (self.peak + self.first_peak)

    @property
    def tensors(self) -> int:
        return self.weights + self.static + self.activations + self.utterances + self.references + WORKSPACE_BYTES

    @property
    def total(self) -> int:
        return self.tensors + DECODER_LIBRARY_BYTES


class Peak(TorchDispatchMode):
    """Largest total size of tensors on META that exist at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {storage_of(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        try:
            result = func(*args, **(kwargs or {}))
        except NotImplementedError:  # a copy to the host, which has no values
            if func._overloadpacket.__name__ not in ("to", "_to_copy"):
                raise
            result = torch.zeros(args[0].shape, dtype=args[0].dtype)
        self._live = {key: reference for key, reference in self._live.items() if not reference[0].expired()}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device == META and storage_of(leaf) not in before | set(self._live):
                storage = leaf.untyped_storage()
                self._live[storage_of(leaf)] = StorageWeakRef(storage), storage.nbytes()
        self.num_bytes = max(self.num_bytes, sum(size for _, size in self._live.values()))
        return result


def storage_of(tensor: Tensor) -> int:
    """Return the identity of a tensor's memory."""
    return tensor.untyped_storage()._cdata


def measure(codec: Codec, config: DecoderConfig) -> DecoderMemory:
    """Return the memory that a decoder with this codec needs on a GPU.

    The codec's weights are moved to META, so it can no longer decode. A codec that cannot be measured in this way, or
    has no convolutions for the configured mode, raises CheckpointError.
    """
    if not isinstance(codec, nn.Module):
        raise CheckpointError(f"codec {codec.spec.name}: expected a torch module, whose memory can be measured")
    check_mode(codec, config.convolutions)
    config = config.limited(codec.spec.max_batch)
    weights = sum(weight.nbytes for weight in tensors_to_meta(codec))
    state = codec.initial_state(1)
    peaks = list[int]()
    is_on_device = state.device == META
    has_graphs = codec.spec.can_capture and config.graphs
    windows = list(largest_batches(codec, config))
    if has_graphs:
        windows = [in_rows(window) for window in windows]
    decode = decode_in_rows(codec)
    convolutions = convolutions_in(config.convolutions)
    converting = windows[:1]  # converts or rearranges the weights
    try:
        for window in converting + windows:
            with convolutions, Peak() as memory, torch.inference_mode():
                decode(window)
            peaks.append(memory.num_bytes)
    except (RuntimeError, NotImplementedError) as error:
        raise CheckpointError(f"codec {codec.spec.name}: cannot be measured on device meta: {error}") from error
    if isinstance(convolutions, Convolutions):
        weights += convolutions.num_bytes
    utterance = state.nbytes if is_on_device else 0
    peak = max(peaks[len(converting) :], default=0)
    return DecoderMemory(
        weights=weights,
        static=(NUM_RESERVED + num_in_flight(config.max_batch)) * utterance if has_graphs else 0,
        peak=peak,
        first_peak=int(peak * FIRST_BATCH_S / MAX_BATCH_S) if has_graphs else 0,
        utterance=utterance,
        utterances=config.max_utterances * utterance,
        references=config.reference_mb * MIB if is_on_device else 0,
    )


def tensors_to_meta(codec: nn.Module) -> Iterator[Tensor]:
    """Move weights to META, except those that codecs keep on the host, and yield each of them."""
    for owner in codec.modules():
        held: tuple[dict[str, Any], ...] = owner._parameters, owner._buffers
        for tensors in held:
            for name, tensor in tensors.items():
                if tensor is not None and name not in LENGTHS:
                    away = tensor.to(META)
                    tensors[name] = nn.Parameter(away, False) if isinstance(tensor, nn.Parameter) else away
                    yield away


def largest_batches(codec: Codec, config: DecoderConfig) -> Iterator[Window]:
    """Yield the batches that may need the most memory: the largest of each usual shape, and the longest window."""
    spec = codec.spec
    policy = ChunkPolicy(config.first_frames, config.steady_frames)
    shapes = [(window.left, window.codes.shape[1], window.right) for window in windows_of(spec, policy)]
    if spec.blocks:
        shapes = [shapes[0], longest_block(spec)]
    if spec.max_frames is not None:
        shapes = [(0, spec.max_frames, 0)]
    device = torch.device("cpu") if spec.reads_on_host else META
    for left, num_frames, right in shapes:
        # codecs that read on the host decode the utterances of a batch one after another, if they have blocks
        batch = 1 if spec.blocks and spec.reads_on_host else batch_limit(spec, num_frames, config.max_batch)
        codes = torch.zeros(batch, spec.num_codebooks, num_frames, dtype=torch.int64, device=device)
        first = torch.full((batch,), left, device=device)
        yield Window(codes, left, right, first, codec.initial_state(batch))


def in_rows(window: Window) -> Window:
    """Return a window whose states are rows of a table, which has rows for the states before and after it."""
    batch = len(window.codes)
    rows = torch.zeros(2, batch, dtype=torch.int64, device=window.codes.device)
    return replace(window, state=window.state.repeat(2, 1), rows=rows)


def longest_block(spec: CodecSpec) -> tuple[int, int, int]:
    """Return left context, number of frames and right context of the longest window of a codec with blocks."""
    windower = Windower(spec)
    size = spec.blocks[-1]
    windows = list[FrameWindow]()
    for num_frames in (*spec.blocks, *[size] * -(-2 * spec.left_frames // size)):
        window = windower.push(np.zeros((spec.num_codebooks, num_frames), np.int64), is_final=False)
        windows += [] if window is None else [window]
    longest = max(windows, key=lambda window: window.codes.shape[1])
    return longest.left, longest.codes.shape[1], longest.right
