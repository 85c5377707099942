"""Estimate how many streams of each family a GPU serves, and what 1 to 1000 GPUs need in gateways, network and money.

    python -m benchmarks.sizing                     # the tables of docs/gpu.md, then those of docs/scale.md
    python -m benchmarks.sizing --gpu-price 3.20    # price of a GPU hour

A step computes one row for each unguided stream and two rows for each guided stream. It must end before the next frame
is due. It reads all weights once and the KV cache of every row, and computes two operations per weight and row. For a
family with a depth transformer, the depth layers are read again for each code. Memory holds the weights and the KV
cache of the longest reply. The codec computes in float32 on its own GPU; for the cost of speech, it shares the language
model's GPU. The cost of gateways per second of audio is measured. All other assumptions are constants in this module.
"""

import argparse
from dataclasses import dataclass
from itertools import takewhile

BYTES = 2  # bfloat16
SHARE_OF_BANDWIDTH, SHARE_OF_COMPUTE = 0.75, 0.5  # share of the data sheet's values that kernels reach
SHARE_OF_MEMORY = 0.85  # `gpu_memory_utilization` of `make-repository --gpu`
SHARE_OF_FLOAT32 = 0.3  # share that a codec's convolutions reach
RESERVED_GB = 4.0  # activations, graphs, the codec, the audio encoder
SHARE_OF_TIME = 0.8  # share of the time between two frames that a step may take
HOST_MS, HOST_MS_A_ROW = 1.0, 0.019  # Python time around a step: 2.2 ms at 64 rows
# Least time of a depth transformer's layer, and of the rest of a pass. They run eight and five small kernels one after
# another (counted in tests/engine/kernels/gpu/test_depth.py). A kernel takes 3 µs, except that the draw takes 6 µs.
LAYER_MS, DRAW_MS = 0.024, 0.018
SECONDS, PROMPT_ROWS = 30.0, 200  # longest reply; on average, streams are halfway through it
MOST_STREAMS = 1024


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
        passes: Number of passes.
        columns: Number of logits.
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
        has_cross_attention: True if each layer also has cross-attention; its rows count as part of `window`.
    """

    name: str
    vocabulary: int
    head_columns: int
    frame_rate: float
    is_guided: bool
    tables: int = 2
    depth: Depth | None = None
    window: int = 0
    has_cross_attention: bool = False

    @property
    def layer_weights(self) -> int:
        """Number of weights in the matrices of all layers."""
        return super().layer_weights + 4 * self.has_cross_attention * self.layers * self.hidden**2

    @property
    def weights(self) -> int:
        """Number of weights, with embeddings, output head and depth transformer."""
        own = self.layer_weights + self.tables * self.vocabulary * self.hidden
        return own if self.depth is None else own + self.depth.weights

    @property
    def kv_bytes(self) -> int:
        """Size of the KV cache per row in bytes: keys and values of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES

    @property
    def rows(self) -> int:
        """Number of rows per stream in a step."""
        return 2 if self.is_guided else 1

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
    """Data sheet values of a GPU: memory, bandwidth, and operations per second in dense bfloat16 and float32."""

    name: str
    memory_gb: float
    tb_per_s: float
    tflops: float
    float32_tflops: float


@dataclass(frozen=True)
class CodecCost:
    """Operations per second of audio in chunks of 25 and of 8 frames, with context (counted by `FlopCounterMode`)."""

    name: str
    gflop: dict[int, float]


CSM_DEPTH = Depth(1024, 4, 2, 128, 8, 8_192, passes=31, columns=2_048)
QWEN3_TTS_DEPTH = Depth(1024, 5, 8, 128, 16, 3_072, passes=15, columns=2_048)
MOSHI_DEPTH = Depth(1024, 6, 16, 64, 16, 2_816, passes=8, columns=2_048, sets=8)
KYUTAI_TTS_DEPTH = Depth(1024, 4, 16, 64, 16, 2_048, passes=32, columns=2_048, sets=11)
TTS_WINDOW = 500 + 625  # rows of the window, and of the voices' vectors that cross-attention reads
BACKBONES = (
    Backbone(4096, 36, 8, 128, 32, 12_288, "Bagpiper (Qwen3 8B), guided", 160_392, 8_200, 50.0, True),
    Backbone(4096, 36, 8, 128, 32, 12_288, "Bagpiper (Qwen3 8B), unguided", 160_392, 8_200, 50.0, False),
    Backbone(4096, 32, 32, 128, 32, 11_008, "OpusLM 7B (OLMo 2)", 113_870, 13_200, 50.0, False),
    Backbone(2048, 24, 32, 64, 32, 8_192, "OpusLM 1.7B (SmolLM2)", 113_870, 13_200, 50.0, False),
    Backbone(2048, 16, 8, 64, 32, 8_192, "CSM 1B (Llama 3.2)", 193_792, 2_049, 12.5, False, 1, CSM_DEPTH),
    Backbone(1024, 28, 8, 128, 16, 3_072, "Qwen3-TTS 0.6B", 185_728, 2_049, 12.5, False, 1, QWEN3_TTS_DEPTH),
    Backbone(2048, 28, 8, 128, 16, 6_144, "Qwen3-TTS 1.7B", 185_728, 2_049, 12.5, False, 1, QWEN3_TTS_DEPTH),
    Backbone(896, 24, 2, 64, 14, 4_864, "CosyVoice 3 (Qwen2 0.5B)", 158_697, 6_761, 25.0, False, 1),
    Backbone(3072, 28, 8, 128, 24, 2 * 8_192, "Higgs Audio v2 (Llama 3.2 3B)", 136_464, 8_208, 25.0, False, 1),
    Backbone(
        4096, 32, 32, 128, 32, 11_264, "Moshi 7B, live sessions", 64_787, 32_000, 12.5, False, 1, MOSHI_DEPTH, 3_000
    ),
    Backbone(2048, 16, 16, 128, 16, 5_632, "Kyutai STT 1B, live sessions", 73_571, 8_000, 12.5, False, 1, None, 750),
    Backbone(
        2048,
        16,
        16,
        128,
        16,
        5_632,
        "Kyutai TTS 1.6B",
        81_572,
        8_000,
        12.5,
        False,
        1,
        KYUTAI_TTS_DEPTH,
        TTS_WINDOW,
        True,
    ),
)
GPUS = (
    Gpu("L4", 24, 0.300, 121, 30.3),
    Gpu("L40S", 48, 0.864, 362, 91.6),
    Gpu("A100 80 GB", 80, 2.04, 312, 19.5),
    Gpu("H100 SXM", 80, 3.35, 989, 67),
    Gpu("H200", 141, 4.8, 989, 67),
)
CODECS = (CodecCost("xcodec (Bagpiper)", {25: 44.0, 8: 85.6}), CodecCost("espnet_dac (OpusLM)", {25: 6.3, 8: 9.6}))


def streams_in_memory(backbone: Backbone, gpu: Gpu) -> int:
    """Return how many replies of the greatest length fit the KV cache; 0 or less if the weights do not fit."""
    free = 1e9 * (SHARE_OF_MEMORY * gpu.memory_gb - RESERVED_GB) - BYTES * backbone.weights
    return int(free // (backbone.rows * backbone.longest * backbone.kv_bytes))


def step_ms(backbone: Backbone, gpu: Gpu, streams: int) -> float:
    """Return the milliseconds of a step with `streams` streams, with replies half complete or with full windows.

    The slower of device and host determines the time.
    """
    rows = streams * backbone.rows
    products = products_ms(backbone.layer_weights + backbone.head_columns * backbone.hidden, gpu, rows)
    attention = 1e3 * rows * backbone.attended * backbone.kv_bytes / (SHARE_OF_BANDWIDTH * gpu.tb_per_s * 1e12)
    depth = 0.0 if backbone.depth is None else backbone.depth.ms(gpu, rows)
    return max(products + attention + depth, HOST_MS + HOST_MS_A_ROW * rows)


def products_ms(weights: int, gpu: Gpu, rows: int) -> float:
    """Return the milliseconds of matrix products: the longer of reading the weights and computing."""
    read_s = BYTES * weights / (SHARE_OF_BANDWIDTH * gpu.tb_per_s * 1e12)
    return 1e3 * max(read_s, 2 * rows * weights / (SHARE_OF_COMPUTE * gpu.tflops * 1e12))


def streams_in_time(backbone: Backbone, gpu: Gpu) -> int:
    """Return the largest number of streams whose step ends within the time of a frame."""
    limit_ms = SHARE_OF_TIME * 1e3 / backbone.frame_rate
    return sum(1 for _ in takewhile(lambda n: step_ms(backbone, gpu, n) <= limit_ms, range(1, MOST_STREAMS + 1)))


def streams_of_codec(codec: CodecCost, gpu: Gpu, frames: int) -> int:
    """Return how many streams the codec serves on its own GPU, in chunks of `frames` frames."""
    return int(1e3 * SHARE_OF_FLOAT32 * gpu.float32_tflops // codec.gflop[frames])


def tables() -> str:
    """Return the tables for docs/gpu.md in Markdown."""
    lines = ["| model | weights | KV cache a row | a stream of 30 s |", "|---|---|---|---|"]
    for each in BACKBONES:
        weights_gb, stream_gb = BYTES * each.weights / 1e9, each.rows * each.longest * each.kv_bytes / 1e9
        lines.append(f"| {each.name} | {weights_gb:.1f} GB | {each.kv_bytes / 1024:.0f} KiB | {stream_gb:.2f} GB |")
    lines += ["", "| model | " + " | ".join(gpu.name for gpu in GPUS) + " |", "|---|" + "---|" * len(GPUS)]
    for each in BACKBONES:
        lines.append(f"| {each.name} | " + " | ".join(_cell(each, gpu) for gpu in GPUS) + " |")
    lines += ["", "| codec | " + " | ".join(gpu.name for gpu in GPUS) + " |", "|---|" + "---|" * len(GPUS)]
    for codec in CODECS:
        cells = (f"{streams_of_codec(codec, gpu, 25)} … {streams_of_codec(codec, gpu, 8)}" for gpu in GPUS)
        lines.append(f"| {codec.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(backbone: Backbone, gpu: Gpu) -> str:
    memory = streams_in_memory(backbone, gpu)
    if memory < 1:
        return "–"
    time = streams_in_time(backbone, gpu)
    return f"**{min(memory, time)}** ({memory} / {time}), {step_ms(backbone, gpu, 1):.1f} ms"


BUSY = 0.75  # share of a server's streams in use: deploy/kubernetes/scaling.yaml, deploy/ray
CHUNK_FRAMES = 25  # frames per chunk of a steady stream
GATEWAY_MS = 12.7  # processor time per second of mp3, the most expensive format (measured: docs/scale.md)
GATEWAY_BUSY = 0.6  # target share of a gateway's processor, for its autoscaler
GATEWAY_STREAMS = 256  # `--max-active` of a gateway
INSIDE_KBIT = 16 * 24.0 * 1.05  # server to gateway: 16-bit samples at 24 kHz, plus gRPC (estimated)
OUTSIDE_KBIT = {"pcm, wav": 16 * 24.0, "mp3, aac": 64.0, "opus": 32.0}  # `stretto_gateway.encoding.CODECS`
SIZES = (1, 8, 64, 1000)
# Language models with a codec in CODECS.
COUNTED = tuple(each for each in BACKBONES if any(each.name.split()[0] in codec.name for codec in CODECS))


@dataclass(frozen=True)
class Prices:
    """Prices per hour in any currency: for a GPU with its share of a host, and for a core of a gateway host."""

    gpu: float = 2.50
    core: float = 0.04


@dataclass(frozen=True)
class Fleet:
    """`num_gpus` servers, each with a GPU for `streams` streams."""

    num_gpus: int
    streams: int

    @property
    def busy_streams(self) -> float:
        """Streams in use on all servers."""
        return BUSY * self.streams * self.num_gpus

    @property
    def gateway_cores(self) -> float:
        """Number of cores for the gateways; each gateway is a single process on one core."""
        return max(self.busy_streams * GATEWAY_MS / 1e3 / GATEWAY_BUSY, self.busy_streams / GATEWAY_STREAMS)

    @property
    def inside_gbit(self) -> float:
        """Network traffic between servers and gateways in Gbit per second."""
        return self.busy_streams * INSIDE_KBIT / 1e6

    def outside_gbit(self, kbit: float) -> float:
        """Return the network traffic to clients in Gbit per second, at `kbit` kbit/s per stream."""
        return self.busy_streams * kbit / 1e6

    def hour_of_speech(self, prices: Prices) -> float:
        """Return the cost of an hour of speech when all `busy_streams` are in use."""
        return (self.num_gpus * prices.gpu + self.gateway_cores * prices.core) / self.busy_streams


def codec_of(backbone: Backbone) -> CodecCost:
    """Return the codec cost of a model in COUNTED."""
    (found,) = [codec for codec in CODECS if backbone.name.split()[0] in codec.name]
    return found


def share_of_time(backbone: Backbone, gpu: Gpu, streams: int) -> float:
    """Return the share of the frame period that a step and the codec take on one GPU."""
    codec = streams / max(1, streams_of_codec(codec_of(backbone), gpu, CHUNK_FRAMES))
    return step_ms(backbone, gpu, streams) * backbone.frame_rate / 1e3 + codec


def streams_of(backbone: Backbone, gpu: Gpu) -> int:
    """Return how many streams one GPU serves in real time with both language model and codec; may be 0."""
    most = max(0, streams_in_memory(backbone, gpu))
    return max((n for n in range(1, most + 1) if share_of_time(backbone, gpu, n) <= SHARE_OF_TIME), default=0)


def fleet_tables(prices: Prices) -> str:
    """Return the tables for docs/scale.md in Markdown."""
    head = [gpu.name for gpu in GPUS]
    lines = ["| one GPU: streams, hour of speech | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for backbone in COUNTED:
        cells = (_cost_cell(streams_of(backbone, gpu), prices) for gpu in GPUS)
        lines.append(f"| {backbone.name} | " + " | ".join(cells) + " |")
    one = streams_of(COUNTED[0], _gpu("H100 SXM"))
    outside = " | ".join(f"out, {name}" for name in OUTSIDE_KBIT)
    lines += ["", f"| GPUs | streams in use | gateway cores | servers to gateways | {outside} |"]
    lines.append("|---|" + "---|" * (3 + len(OUTSIDE_KBIT)))
    for num_gpus in SIZES:
        fleet = Fleet(num_gpus, one)
        out = " | ".join(f"{fleet.outside_gbit(kbit):.2f}" for kbit in OUTSIDE_KBIT.values())
        row = (
            f"| {num_gpus} | {fleet.busy_streams:,.0f} | {fleet.gateway_cores:,.1f} | {fleet.inside_gbit:.2f} | {out} |"
        )
        lines.append(row)
    return "\n".join(lines)


def _gpu(name: str) -> Gpu:
    return next(gpu for gpu in GPUS if gpu.name == name)


def _cost_cell(streams: int, prices: Prices) -> str:
    return f"**{streams}**, {Fleet(1, streams).hour_of_speech(prices):.3f}" if streams else "–"


def main(words: list[str] | None = None) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-price", type=float, default=Prices.gpu, help="price per hour; default: %(default)s")
    parser.add_argument("--core-price", type=float, default=Prices.core, help="price per hour; default: %(default)s")
    arguments = parser.parse_args(words)
    print(tables(), fleet_tables(Prices(arguments.gpu_price, arguments.core_price)), sep="\n\n")


if __name__ == "__main__":
    main()
