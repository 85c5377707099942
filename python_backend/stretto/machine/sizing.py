"""Estimate of the time that a language model and its codec need on a GPU, and of the KV cache there and on a CPU.

A step computes one row for each unguided stream and two rows for each guided stream. It must end before the next frame
is due. It reads all weights once and the KV cache of every row, and computes two operations per weight and row. For a
family with a depth transformer, the depth layers are read again for each code. The KV cache has the longest reply of
each stream. The codec computes in float32, unless other convolutions are chosen. All assumptions are constants in this
module. `Needs` divides the memory of a GPU between the language model and the
other processes: the decoder, the preprocessor and the server need the same on every GPU (`Needs.reserved`), and the
language model gets the rest when it starts (`EngineConfig.reserved_mb`), in whatever order the processes start.

The module imports no torch, because `stretto run` estimates with it whether a release fits before it is installed.
"""

from dataclasses import dataclass
from itertools import takewhile

from stretto.errors import CheckpointError
from stretto.family.base import Family
from stretto.machine.gpus import GIB, MIB
from stretto.machine.kv_blocks import MAX_STEPS_IN_FLIGHT, SessionBlocks, blocks_in_window

SERVER_BYTES = 1 << 30  # context of the server process, clients' rings, and memory lost to fragmentation
ENGINE_BYTES = 2 << 30  # context, activations and CUDA graphs of the language model

BYTES = 2  # bfloat16
# Times were measured on an H100 (benchmarks/results/gpu_check.jsonl) and are assumed for other GPUs.
# share of the data sheet's values that kernels reach
SHARE_OF_BANDWIDTH = 0.7
SHARE_OF_COMPUTE = 0.5
LIBRARY_BYTES = 1 << 30  # CUDA context of a process, and workspaces and kernels of cuBLAS and cuDNN
# The same for a decoder: 4.4 GiB were measured with one codec and its graphs, 2 of them local memory of kernels.
DECODER_LIBRARY_BYTES = 9 << 29
WORKSPACE_BYTES = 3 << 29  # of cuDNN: about 0.6 GiB were measured for graphs, and as much without
SHARE_OF_CODEC = 0.26  # share of a GPU's operations that a codec reaches
SHARE_OF_TIME = 0.8  # share of the time between two frames that a step may take
# Python time around a step: 4.8 ms at 64 rows
HOST_MS = 2.3
HOST_MS_A_ROW = 0.039
BACKBONE_LAYER_MS = 0.077  # least time of a layer of the backbone
# Least time of a depth transformer's layer, and of the rest of a pass. They run eight and five small kernels one after
# another (counted in tests/engine/kernels/gpu/test_depth.py), 15 passes of five layers in 3.0 ms.
LAYER_MS = 0.036
DRAW_MS = 0.022
# longest reply; on average, streams are halfway through it
SECONDS = 30.0
PROMPT_ROWS = 200
MOST_STREAMS = 1024
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
    """Return how many numbers attention keeps per row: keys and values of `width` numbers in every layer."""
    return 2 * layers * width


@dataclass(frozen=True)
class Shape:
    """Layers of a decoder. `inner` is the width of the MLP, or the sum of widths if a layer has several MLPs."""

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
    """A depth transformer, whose `passes` passes sample codes of a frame from `columns` logits each.

    Attributes:
        sets: Number of sets of layer weights; a pass reads one of them.
    """

    passes: int
    columns: int
    sets: int = 1

    @property
    def weights(self) -> int:
        """Number of weights, with an embedding and a head for each pass."""
        return self.sets * self.layer_weights + 2 * self.passes * self.columns * self.hidden

    def ms(self, gpu: "Gpu", rows: int) -> float:
        """Return how many milliseconds it takes to complete the frames of `rows` rows."""
        return self.passes * max(
            products_ms(self.layer_weights + self.columns * self.hidden, gpu, rows), self.launch_ms
        )

    @property
    def launch_ms(self) -> float:
        """Least milliseconds of a pass on any GPU."""
        return self.layers * LAYER_MS + DRAW_MS


@dataclass(frozen=True)
class Backbone(Shape):
    """A language model.

    Attributes:
        head_columns: Columns of the output heads that a step reads.
        tables: Number of tables over the vocabulary: 1 if it has only embeddings, 2 with an output head.
        window: Number of rows in the attention window, which is full in every stream; 0 if replies last SECONDS.
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
        """Number of weights in the matrices of all layers."""
        return super().layer_weights + 4 * (self.vector_rows > 0) * self.layers * self.hidden**2

    @property
    def weights(self) -> int:
        """Number of weights, with embeddings, output head and depth transformer."""
        num_weights = self.layer_weights + self.tables * self.vocabulary * self.hidden
        return num_weights if self.depth is None else num_weights + self.depth.weights

    @property
    def kv_bytes(self) -> int:
        """Size of the KV cache per row in bytes: keys and values of every layer."""
        return kv_numbers(self.layers, self.kv_heads * self.head_dim) * BYTES

    @property
    def kv_window(self) -> int:
        """Number of rows of the window in the KV cache; 0 without a window."""
        return max(self.window - self.vector_rows, 0)

    @property
    def table_bytes(self) -> int:
        """Size of a stream's keys and values of speaker vectors in bytes."""
        return self.vector_rows * kv_numbers(self.layers, self.hidden) * BYTES

    @property
    def frame_bytes(self) -> int:
        """Bytes that are read to generate a frame of one stream: weights, and the KV cache of its rows."""
        numbers = self.layer_weights + self.head_columns * self.hidden
        if self.depth is not None:
            numbers += self.depth.passes * (self.depth.layer_weights + self.depth.columns * self.depth.hidden)
        return BYTES * numbers + round(self.rows * self.attended * self.kv_bytes)

    @property
    def rows(self) -> int:
        """Number of rows per stream in a step."""
        return 2 if self.is_guided else 1

    @property
    def stream_bytes(self) -> int:
        """Size of a stream's KV cache for the longest reply in bytes."""
        return self.rows * self.longest * self.kv_bytes

    @property
    def longest(self) -> int:
        """Number of rows in the KV cache of the longest reply, including its prompt."""
        return self.window or PROMPT_ROWS + round(SECONDS * self.frame_rate)

    @property
    def attended(self) -> float:
        """Mean number of rows that a row attends to."""
        return self.window or self.longest / 2


@dataclass(frozen=True)
class Gpu:
    """Data sheet values of a GPU: memory, bandwidth, and dense operations per second in bfloat16, float32 and TF32."""

    name: str
    memory_gb: float
    tb_per_s: float
    tflops: float
    float32_tflops: float
    tf32_tflops: float


@dataclass(frozen=True)
class CodecCost:
    """Cost of a codec.

    Attributes:
        gflop: Operations per second of audio by chunk size in frames, with context (counted by `FlopCounterMode`). The
            first size is the steady one.
        convolved: The part of those of the first size in convolutions that tensor cores can compute.
        history: Number of earlier frames that each chunk decodes again; None for the codec's left context.
    """

    name: str
    gflop: dict[int, float]
    convolved: float
    history: int | None = None

    @property
    def steady_frames(self) -> int:
        """Chunk size of a steady stream in frames."""
        return next(iter(self.gflop))


def num_slots(table_bytes: int, is_on_gpu: bool) -> int:
    """Return the number of batch slots of a server.

    Tables of speaker vectors, and large states of utterances in the decoder, take at most TABLE_BYTES; with them, the
    number is a power of two.

    Args:
        table_bytes: Size of a slot's table and of its utterance's state; 0 without them.
    """
    most = MAX_SLOTS[is_on_gpu]
    if not table_bytes:
        return most
    fitting: int = max(TABLE_BYTES // table_bytes, 1)
    return min(most, 1 << fitting.bit_length() - 1)


def cpu_slots(family: Family, longest: int, window: int, row_bytes: int, slots: int) -> int:
    """Return the number of batch slots of a server on a CPU.

    Live sessions cannot be preempted, so each one keeps its rows of the KV cache. All of them together keep at most
    CPU_CACHE_BYTES, unless a single one needs more. One slot is for a reply beside them.

    Args:
        longest: Number of rows of the longest request: its prompt and its reply.
        window: Number of rows in the attention window, if all layers have one; 0 otherwise.
    """
    if family.code_track is None:
        return slots
    return min(slots, 1 + max(1, CPU_CACHE_BYTES // (row_bytes * _session_rows(longest, window))))


def _session_rows(longest: int, window: int) -> int:
    """Return the number of rows that a live session keeps in the KV cache on a CPU."""
    return CPU_BLOCK_SIZE * SessionBlocks.from_rows(longest, CPU_BLOCK_SIZE, window or None, MAX_STEPS_IN_FLIGHT).room


def longest_rows(family: Family, longest: int, window: int, is_on_gpu: bool) -> int:
    """Return the number of rows in the KV cache of the longest reply, with both requests if it is guided by a pair.

    Args:
        longest: Number of rows of the longest request: its prompt and its reply.
        window: Number of rows in the attention window, if all layers have one; 0 otherwise.
    """
    # Blocks that leave the window are freed, but those of two steps may be in flight, or of one step on a CPU.
    size, in_flight = (1, MAX_STEPS_IN_FLIGHT * GPU_BATCHED_ROWS) if is_on_gpu else (CPU_BLOCK_SIZE, CPU_BATCHED_ROWS)
    return (2 if family.guided_streams else 1) * size * blocks_in_window(longest, size, window or None, in_flight)


def cpu_cache_bytes(family: Family, longest: int, window: int, row_bytes: int, slots: int) -> int:
    """Return the size of the KV cache of a server on a CPU in bytes.

    There is always room for the longest reply, so that no request is rejected for its length. There is also room for
    the rows that all batch slots need on average, with replies of SECONDS that are halfway complete, within
    CPU_CACHE_BYTES. If replies need more, some are preempted. Live sessions cannot be preempted: all slots but one have
    room for a session, and the last one for the longest reply. A table of latents requires a cache of its own size
    (`LatentSpec.cache_bytes`).

    Args:
        longest: Number of rows of the longest request: its prompt and its reply.
        window: Number of rows in the attention window, if all layers have one; 0 otherwise.
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


def step_ms(backbone: Backbone, gpu: Gpu, streams: int) -> float:
    """Return the milliseconds of a step with `streams` streams, with replies half complete or with full windows.

    The slower of device and host determines the time.
    """
    rows = streams * backbone.rows
    products = products_ms(backbone.layer_weights + backbone.head_columns * backbone.hidden, gpu, rows)
    attention = 1e3 * rows * backbone.attended * backbone.kv_bytes / (SHARE_OF_BANDWIDTH * gpu.tb_per_s * 1e12)
    layers = max(products + attention, backbone.layers * BACKBONE_LAYER_MS)
    depth = 0.0 if backbone.depth is None else backbone.depth.ms(gpu, rows)
    return max(layers + depth, HOST_MS + HOST_MS_A_ROW * rows)


def products_ms(weights: int, gpu: Gpu, rows: int) -> float:
    """Return the milliseconds of matrix products: the longer of reading the weights and computing."""
    read_s = BYTES * weights / (SHARE_OF_BANDWIDTH * gpu.tb_per_s * 1e12)
    return 1e3 * max(read_s, 2 * rows * weights / (SHARE_OF_COMPUTE * gpu.tflops * 1e12))


def streams_in_time(backbone: Backbone, gpu: Gpu) -> int:
    """Return the largest number of streams whose step ends within the time of a frame."""
    limit_ms = SHARE_OF_TIME * 1e3 / backbone.frame_rate
    return sum(1 for _ in takewhile(lambda n: step_ms(backbone, gpu, n) <= limit_ms, range(1, MOST_STREAMS + 1)))


def streams_of_codec(codec: CodecCost, gpu: Gpu, frames: int) -> int:
    """Return how many streams the codec serves on its own GPU in float32, in chunks of `frames` frames."""
    return int(1e3 * SHARE_OF_CODEC * gpu.float32_tflops // codec.gflop[frames])


def streams_with(convolutions: str, codec: CodecCost, gpu: Gpu) -> int:
    """Return how many streams the codec serves on its own GPU in steady chunks, with other convolutions.

    Args:
        convolutions: One of `DecoderConfig.CONVOLUTIONS`, but `float32`.
    """
    tflops = {"exact": gpu.tf32_tflops / 3, "tf32": gpu.tf32_tflops, "bfloat16": gpu.tflops}[convolutions]
    others = (codec.gflop[codec.steady_frames] - codec.convolved) / gpu.float32_tflops
    return int(1e3 * SHARE_OF_CODEC / (others + codec.convolved / tflops))


@dataclass(frozen=True, slots=True)
class Needs:
    """Memory that the processes of a server need on the language model's GPU, in bytes.

    Attributes:
        decoder: The decoder; 0 if it is on another device.
        preprocessor: Weights of the preprocessor; None if it is on another device.
        weights: Weights of the language model.
        tables: Tables of the language model's batch slots, besides the KV cache.
        cache: KV cache of a reply of the greatest length, with both requests of a CFG pair.
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
        """Memory of all processes except the language model's; that of a speaker is reserved as well."""
        preprocessor = 0 if self.preprocessor is None else self.preprocessor + 2 * LIBRARY_BYTES
        return self.decoder + preprocessor + self.speaker + SERVER_BYTES

    @property
    def reserved_mb(self) -> int:
        """`reserved`, in MiB (`EngineConfig.reserved_mb`)."""
        return -(-self.reserved // MIB)

    @property
    def engine(self) -> int:
        """Least memory of the language model."""
        return engine_bytes(self.weights, self.tables + self.cache)

    @property
    def total(self) -> int:
        """Memory of the smallest GPU that is large enough."""
        return self.reserved + self.engine

    def cache_on(self, gpu_bytes: int) -> int:
        """Return the memory of the KV cache on a GPU with this much memory; negative if the weights do not fit."""
        return gpu_bytes - self.reserved - (self.engine - self.cache)

    def check(self, gpu_bytes: int) -> None:
        """Raise CheckpointError if a GPU with this much memory is too small."""
        if self.cache_on(gpu_bytes) < self.cache:
            raise CheckpointError(
                f"expected a GPU with at least {self.total / GIB:.1f} GiB: the language model needs"
                f" {self.engine / GIB:.1f} (weights {self.weights / GIB:.1f}, one reply {self.cache / GIB:.1f}) and the"
                f" other processes {self.reserved / GIB:.1f}, got {gpu_bytes / GIB:.1f} GiB;"
                " --codec-device puts the codec on another GPU"
            )


def engine_bytes(weights: int, cache: int) -> int:
    """Return the memory of an engine with these weights and this cache."""
    return weights + cache + ENGINE_BYTES


def latent_bytes(family: Family, num_slots: int, num_rows: int) -> int:
    """Return the size of the tables of latents that are fed back; 0 for other families.

    Args:
        num_rows: Number of rows of the longest request.
    """
    latents = family.layout.latents
    return 0 if latents is None else 4 * num_slots * (num_rows + 1) * latents.num_words  # float32
