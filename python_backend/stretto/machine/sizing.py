"""Estimates of the memory that a language model, its codec and the server need on a GPU, and of the KV cache on a CPU.

`Needs` divides the memory of a GPU between the language model and the other processes (`Needs.reserved`: the decoder,
the preprocessor and the server). The others need the same on every GPU, and the language model gets the rest.

The module imports no torch, because `stretto run` estimates with it whether a release fits before it is installed.
"""

from dataclasses import dataclass

from stretto.errors import CheckpointError
from stretto.family.base import Family
from stretto.machine.gpus import GIB, MIB
from stretto.machine.kv_blocks import MAX_STEPS_IN_FLIGHT, SessionBlocks, blocks_in_window

SERVER_BYTES = 1 << 30  # context of the server process, clients' rings, and memory lost to fragmentation
ENGINE_BYTES = 2 << 30  # context, activations and CUDA graphs of the language model

BYTES = 2  # bfloat16
LIBRARY_BYTES = 1 << 30  # CUDA context of a process, and workspaces and kernels of cuBLAS and cuDNN
# The same for a decoder: 4.4 GiB were measured with one codec and its graphs, 2 of them local memory of kernels.
DECODER_LIBRARY_BYTES = 9 << 29
WORKSPACE_BYTES = 3 << 29  # workspaces of cuDNN: about 0.6 GiB were measured for graphs, and as much without
HOST_MS_A_ROW = 0.039  # Python time around a step for each row (measured with an H100)
# longest reply; on average, streams are halfway through it
SECONDS = 30.0
PROMPT_ROWS = 200
MAX_SLOTS = {True: 256, False: 32}  # batch slots of a server on a GPU, and on a CPU
TABLE_BYTES = 6 << 30  # limit for keys and values of speaker vectors: a quarter of a GPU with 24 GiB
# rows per step
GPU_BATCHED_ROWS = 8192
CPU_BATCHED_ROWS = 2048
CPU_BLOCK_SIZE = 32  # rows; the block size on the CPU must be a multiple of it
MAX_CPU_ROWS = 1024  # rows per batch slot
# KV cache on a CPU, unless one request needs more. A processor gains little from a batch of many rows of a large model.
CPU_CACHE_BYTES = 2 << 30


def kv_numbers(layers: int, width: int) -> int:
    """Return how many numbers the KV cache has per row: keys and values of `width` numbers in every layer."""
    return 2 * layers * width


@dataclass(frozen=True)
class Shape:
    """Layers of a transformer. `inner` is the width of the MLP, or the sum of widths if a layer has several MLPs."""

    hidden: int
    layers: int
    kv_heads: int
    head_dim: int
    heads: int
    inner: int

    @property
    def layer_weights(self) -> int:
        """Number of weights in the four attention and three MLP matrices of all layers."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner)


@dataclass(frozen=True)
class Depth(Shape):
    """A depth transformer. Each of its `passes` passes samples a code of a frame from `columns` logits.

    Attributes:
        sets: Number of sets of layer weights; a pass reads one of them.
    """

    passes: int
    columns: int
    sets: int = 1

    @property
    def weights(self) -> int:
        return self.sets * self.layer_weights + 2 * self.passes * self.columns * self.hidden


@dataclass(frozen=True)
class Backbone(Shape):
    """A language model.

    Attributes:
        head_columns: Columns of the output heads that a step reads.
        tables: Number of tables over the vocabulary: 1 if it has only embeddings, 2 with an output head.
        window: Number of rows in the attention window, which is assumed to be full; 0 if replies last SECONDS.
        vector_rows: Rows that cross-attention reads in each layer, which count as part of `window`; 0 without it.
    """

    name: str
    vocabulary: int
    head_columns: int
    frame_rate: float
    is_guided: bool
    tables: int = 2
    depth: Depth | None = None
    window: int = 0
    vector_rows: int = 0

    @property
    def layer_weights(self) -> int:
        return super().layer_weights + 4 * (self.vector_rows > 0) * self.layers * self.hidden**2

    @property
    def weights(self) -> int:
        num_weights = self.layer_weights + self.tables * self.vocabulary * self.hidden
        return num_weights if self.depth is None else num_weights + self.depth.weights

    @property
    def kv_bytes(self) -> int:
        """Size of the KV cache per row in bytes."""
        return kv_numbers(self.layers, self.kv_heads * self.head_dim) * BYTES

    @property
    def kv_window(self) -> int:
        return max(self.window - self.vector_rows, 0)

    @property
    def table_bytes(self) -> int:
        """Size in bytes of the keys and values that cross-attention reads for one stream."""
        return self.vector_rows * kv_numbers(self.layers, self.hidden) * BYTES

    @property
    def frame_bytes(self) -> int:
        """Number of bytes that are read to generate one frame of one stream: weights and KV cache."""
        numbers = self.layer_weights + self.head_columns * self.hidden
        if self.depth is not None:
            numbers += self.depth.passes * (self.depth.layer_weights + self.depth.columns * self.depth.hidden)
        return BYTES * numbers + round(self.rows * self.attended * self.kv_bytes)

    @property
    def rows(self) -> int:
        """Number of rows per step that a reply takes: 2 if it is guided."""
        return 2 if self.is_guided else 1

    @property
    def longest(self) -> int:
        """Number of rows of the longest reply in the KV cache, including its prompt."""
        return self.window or PROMPT_ROWS + round(SECONDS * self.frame_rate)

    @property
    def attended(self) -> float:
        """Mean number of rows that a row attends to."""
        return self.window or self.longest / 2


def num_slots(table_bytes: int, is_on_gpu: bool) -> int:
    """Return the number of batch slots of a server.

    Tables of speaker vectors and large states of utterances in the decoder (`table_bytes` per slot) may take at most
    TABLE_BYTES. With them, the number is a power of two.
    """
    most = MAX_SLOTS[is_on_gpu]
    if not table_bytes:
        return most
    fitting: int = max(TABLE_BYTES // table_bytes, 1)
    return min(most, 1 << fitting.bit_length() - 1)


def cpu_slots(family: Family, longest: int, window: int, row_bytes: int, slots: int) -> int:
    """Return the number of batch slots of a server on a CPU; for the arguments, see `longest_rows`.

    Live sessions cannot be preempted, so their rows stay in the KV cache. All sessions together keep at most
    CPU_CACHE_BYTES, unless one alone needs more. One further slot is for a reply.
    """
    if family.code_track is None:
        return slots
    return min(slots, 1 + max(1, CPU_CACHE_BYTES // (row_bytes * _session_rows(longest, window))))


def _session_rows(longest: int, window: int) -> int:
    return CPU_BLOCK_SIZE * SessionBlocks.from_rows(longest, CPU_BLOCK_SIZE, window or None, MAX_STEPS_IN_FLIGHT).room


def longest_rows(family: Family, longest: int, window: int, is_on_gpu: bool) -> int:
    """Return the number of KV cache rows of the longest reply, with both requests of its CFG pair if it has one.

    Args:
        longest: Number of rows of the longest request: its prompt and its reply.
        window: Number of rows in the attention window, if all layers have one; 0 otherwise.
    """
    # Blocks that leave the window are freed, but those of two steps may be in flight, or of one step on a CPU.
    size, in_flight = (1, MAX_STEPS_IN_FLIGHT * GPU_BATCHED_ROWS) if is_on_gpu else (CPU_BLOCK_SIZE, CPU_BATCHED_ROWS)
    return (2 if family.guided_streams else 1) * size * blocks_in_window(longest, size, window or None, in_flight)


def cpu_cache_bytes(family: Family, longest: int, window: int, row_bytes: int, slots: int) -> int:
    """Return the size of the KV cache of a server on a CPU in bytes; for the arguments, see `longest_rows`.

    The longest reply always fits, so that no request is rejected for its length. Within CPU_CACHE_BYTES, there is also
    room for the rows that all batch slots need on average, with replies of SECONDS that are halfway complete. If
    replies need more, some are preempted. Live sessions cannot be preempted, so all slots but one are sized for a
    session. Latents may require a larger cache (`LatentSpec.cache_bytes`).
    """
    held = longest_rows(family, longest, window, is_on_gpu=False)
    rows_per_s = family.frame_rate * family.rows_per_frame
    if family.code_track is not None:
        rows = max(1, slots - 1) * _session_rows(longest, window) + held
    else:
        usual = PROMPT_ROWS + round(SECONDS / 2 * rows_per_s) if rows_per_s else MAX_CPU_ROWS
        rows = max(held, min(slots * min(usual, MAX_CPU_ROWS), CPU_CACHE_BYTES // row_bytes))
    num_bytes = (rows + 2 * CPU_BLOCK_SIZE) * row_bytes
    latents = family.layout.latents
    return num_bytes if latents is None else max(num_bytes, latents.cache_bytes(slots, longest))


@dataclass(frozen=True, slots=True)
class Needs:
    """Memory that the processes of a server need on the language model's GPU, in bytes.

    Attributes:
        decoder: The decoder; 0 if it is on another device.
        preprocessor: Weights of the preprocessor; None if it is on another device.
        weights: Weights of the language model.
        tables: Tables of the language model's batch slots, besides the KV cache.
        cache: KV cache of the longest reply, with both requests of its CFG pair.
        tensors: Tensors of the decoder, on any device (`DecoderConfig.memory_mb`); 0 if unknown.
        speaker: The speaker's engine; 0 without a speaker.
    """

    decoder: int
    preprocessor: int | None
    weights: int
    tables: int
    cache: int
    tensors: int = 0
    speaker: int = 0

    @property
    def reserved(self) -> int:
        """Memory of all processes except the language model's."""
        preprocessor = 0 if self.preprocessor is None else self.preprocessor + 2 * LIBRARY_BYTES
        return self.decoder + preprocessor + self.speaker + SERVER_BYTES

    @property
    def reserved_mb(self) -> int:
        return -(-self.reserved // MIB)

    @property
    def engine(self) -> int:
        return engine_bytes(self.weights, self.tables + self.cache)

    @property
    def total(self) -> int:
        """Memory of the smallest GPU that is large enough."""
        return self.reserved + self.engine

    def cache_on(self, gpu_bytes: int) -> int:
        """Return the memory of the KV cache on a GPU of this size; negative if the weights do not fit."""
        return gpu_bytes - self.reserved - (self.engine - self.cache)

    def check(self, gpu_bytes: int) -> None:
        """Raise CheckpointError if a GPU of this size is too small."""
        if self.cache_on(gpu_bytes) < self.cache:
            raise CheckpointError(
                f"expected a GPU with at least {self.total / GIB:.1f} GiB: the language model needs"
                f" {self.engine / GIB:.1f} (weights {self.weights / GIB:.1f}, one reply {self.cache / GIB:.1f}) and the"
                f" other processes {self.reserved / GIB:.1f}, got {gpu_bytes / GIB:.1f} GiB;"
                " --codec-device puts the codec on another GPU"
            )


def engine_bytes(weights: int, cache: int) -> int:
    """Return the memory of an engine, with its CUDA context and graphs."""
    return weights + cache + ENGINE_BYTES


def latent_bytes(family: Family, num_slots: int, num_rows: int) -> int:
    """Return the size of the tables of latents in bytes, for the longest request; 0 for families without latents."""
    latents = family.layout.latents
    return 0 if latents is None else 4 * num_slots * (num_rows + 1) * latents.num_words  # float32
