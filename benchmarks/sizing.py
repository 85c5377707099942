"""Estimate the streams of each family that a GPU serves, and gateways, network and money for 1 to 1000 GPUs.

    python -m benchmarks.sizing                     # tables, also those of docs/gpu_sizes.md and docs/scale.md
    python -m benchmarks.sizing --gpu-price 3.20    # price of a GPU hour

A step computes one row for each unguided stream and two rows for each guided stream. It must end before the next frame
is due. It reads all weights once and the KV cache of every row, and computes two operations per weight and row. For a
family with a depth transformer, the depth layers are read again for each code. Memory is computed in the same way as by
`make-repository --gpu` (`stretto.machine.sizing`). The codec shares the language model's GPU, and computes in float32,
unless other convolutions are chosen. The cost of gateways per second of audio is measured. All other assumptions are
constants in this module.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

from benchmarks.decoder_memory import memory_of
from stretto.machine.sizing import BYTES, HOST_MS_A_ROW, Backbone, Depth, Needs

# Times were measured on an H100 (benchmarks/results/gpu_check.jsonl) and are assumed for other GPUs.
# share of the data sheet's values that kernels reach
SHARE_OF_BANDWIDTH = 0.7
SHARE_OF_COMPUTE = 0.5
SHARE_OF_CODEC = 0.26  # share of a GPU's operations that a codec reaches
SHARE_OF_TIME = 0.8  # share of the time between two frames that a step may take
HOST_MS = 2.3  # Python time around a step, to which each row adds HOST_MS_A_ROW: 4.8 ms at 64 rows
BACKBONE_LAYER_MS = 0.077  # least time of a layer of the backbone
# Least time of a depth transformer's layer, and of the rest of a pass. They run eight and five small kernels one after
# another (counted in tests/engine/kernels/gpu/test_depth.py), 15 passes of five layers in 3.0 ms.
LAYER_MS = 0.036
DRAW_MS = 0.022
MOST_STREAMS = 1024


@dataclass(frozen=True)
class Gpu:
    """Data sheet of a GPU: memory, bandwidth, and dense operations per second in bfloat16, float32 and TF32."""

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
        return next(iter(self.gflop))


def step_ms(backbone: Backbone, gpu: Gpu, streams: int) -> float:
    """Return the milliseconds of a step, the longer of device and host, with replies half complete or full windows."""
    rows = streams * backbone.rows
    products = products_ms(backbone.layer_weights + backbone.head_columns * backbone.hidden, gpu, rows)
    attention = 1e3 * rows * backbone.attended * backbone.kv_bytes / (SHARE_OF_BANDWIDTH * gpu.tb_per_s * 1e12)
    layers = max(products + attention, backbone.layers * BACKBONE_LAYER_MS)
    depth = 0.0 if backbone.depth is None else depth_ms(backbone.depth, gpu, rows)
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
    """Return the number of streams that the codec serves on its own GPU in float32, in chunks of `frames` frames."""
    return int(1e3 * SHARE_OF_CODEC * gpu.float32_tflops // codec.gflop[frames])


def streams_with(convolutions: str, codec: CodecCost, gpu: Gpu) -> int:
    """Return the number of streams that the codec serves on its own GPU with convolutions other than `float32`."""
    tflops = {"exact": gpu.tf32_tflops / 3, "tf32": gpu.tf32_tflops, "bfloat16": gpu.tflops}[convolutions]
    others = (codec.gflop[codec.steady_frames] - codec.convolved) / gpu.float32_tflops
    return int(1e3 * SHARE_OF_CODEC / (others + codec.convolved / tflops))


def depth_ms(depth: Depth, gpu: Gpu, rows: int) -> float:
    """Return the milliseconds in which a depth transformer completes the frames of `rows` rows."""
    products = products_ms(depth.layer_weights + depth.columns * depth.hidden, gpu, rows)
    return depth.passes * max(products, depth.layers * LAYER_MS + DRAW_MS)


def stream_bytes(backbone: Backbone) -> int:
    """Return the size of a stream's KV cache for the longest reply in bytes."""
    return backbone.rows * backbone.longest * backbone.kv_bytes


CSM_DEPTH = Depth(1024, 4, 2, 128, 8, 8_192, passes=31, columns=2_048)
QWEN3_TTS_DEPTH = Depth(1024, 5, 8, 128, 16, 3_072, passes=15, columns=2_048)
FISH_S2_DEPTH = Depth(2560, 4, 8, 128, 32, 9_728, passes=9, columns=4_096)
MOSHI_DEPTH = Depth(1024, 6, 16, 64, 16, 2_816, passes=8, columns=2_048, sets=8)
KYUTAI_TTS_DEPTH = Depth(1024, 4, 16, 64, 16, 2_048, passes=32, columns=2_048, sets=11)
TTS_VECTOR_ROWS = 625  # rows of the voices' vectors that cross-attention reads
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
    Backbone(2560, 36, 8, 128, 32, 9_728, "Higgs TTS 3 (Qwen3 4B)", 160_144, 8_208, 25.0, False, 1),
    Backbone(
        2560, 36, 8, 128, 32, 9_728, "Fish Audio S2 Pro (Qwen3 4B)", 192_640, 4_097, 21.5, False, 1, FISH_S2_DEPTH
    ),
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
        500 + TTS_VECTOR_ROWS,
        TTS_VECTOR_ROWS,
    ),
)
GPUS = (
    Gpu("L4", 24, 0.300, 121, 30.3, 60),
    Gpu("L40S", 48, 0.864, 362, 91.6, 183),
    Gpu("A100 80 GB", 80, 2.04, 312, 19.5, 156),
    Gpu("H100 SXM", 80, 3.35, 989, 67, 494),
    Gpu("H200", 141, 4.8, 989, 67, 494),
)
CODECS = (
    CodecCost("xcodec", {25: 44.0, 8: 85.6}, 43.9),
    CodecCost("espnet_dac", {25: 6.3, 8: 9.6}, 5.7),
    CodecCost("mimi", {12: 5.5, 2: 5.6}, 4.15),
    CodecCost("qwen3_12hz", {12: 62.1, 2: 62.3}, 60.0),
    CodecCost("fish_s2", {21: 145.8, 2: 146.3}, 138.8),
    CodecCost("higgs", {25: 24.5, 4: 81.8}, 24.4),
    # with a voice of 6 s, and half of the longest reply
    CodecCost("cosyvoice3", {100: 3126.1}, 40.1, 150 + 375),
)
# Codec of each model, by the first word of its name.
CODEC_OF = {
    "Bagpiper": "xcodec",
    "OpusLM": "espnet_dac",
    "CSM": "mimi",
    "Qwen3-TTS": "qwen3_12hz",
    "CosyVoice": "cosyvoice3",
    "Higgs": "higgs",
    "Fish": "fish_s2",
    "Moshi": "mimi",
    "Kyutai": "mimi",
}
SILENT = "Kyutai STT"  # generates no audio


def tables() -> str:
    """Return the tables for docs/gpu_sizes.md in Markdown."""
    gpus = " | ".join(gpu.name for gpu in GPUS)
    lines = [
        f"| model | weights, GB | KV cache a row, KiB | 30 s, GB | {gpus} |",
        "|---|---|---|---|" + "---|" * len(GPUS),
    ]
    for backbone in BACKBONES:
        weights_gb = BYTES * backbone.weights / 1e9
        sizes = f"{weights_gb:.1f} | {backbone.kv_bytes / 1024:.0f} | {stream_bytes(backbone) / 1e9:.2f}"
        lines.append(f"| {backbone.name} | {sizes} | " + " | ".join(_cell(backbone, gpu) for gpu in GPUS) + " |")
    lines += ["", f"| codec | {gpus} |", "|---|" + "---|" * len(GPUS)]
    for codec in CODECS:
        cells = (" / ".join(map(str, _streams_by_convolutions(codec, gpu))) for gpu in GPUS)
        lines.append(f"| `{codec.name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _streams_by_convolutions(codec: CodecCost, gpu: Gpu) -> list[int]:
    """Return the numbers of streams of a codec on its own GPU with `float32`, `exact` and `bfloat16`."""
    others = (streams_with(convolutions, codec, gpu) for convolutions in ("exact", "bfloat16"))
    return [streams_of_codec(codec, gpu, codec.steady_frames), *others]


def _cell(backbone: Backbone, gpu: Gpu) -> str:
    memory = streams_in_memory(backbone, gpu)
    if memory < 1:
        return "–"
    in_time = streams_in_time(backbone, gpu)
    return f"**{streams_of(backbone, gpu)}** ({memory}, {in_time}), {step_ms(backbone, gpu, 1):.1f}"


@cache
def needs_of(backbone: Backbone) -> Needs:
    """Return the memory of a server with a published model and its codec on one GPU.

    The voices' vectors of Kyutai TTS are counted for each stream, as a part of its window.
    """
    memory = memory_of(CODEC_OF[backbone.name.split()[0]]).total
    return Needs(memory, None, weights=BYTES * backbone.weights, tables=0, cache=stream_bytes(backbone))


def streams_in_memory(backbone: Backbone, gpu: Gpu) -> int:
    """Return the number of replies of maximum length that fit the KV cache; 0 or less if weights do not fit."""
    return needs_of(backbone).cache_on(round(1e9 * gpu.memory_gb)) // stream_bytes(backbone)


def codec_of(backbone: Backbone) -> CodecCost | None:
    """Return the cost of a model's codec; None if the model generates no audio."""
    if backbone.name.startswith(SILENT):
        return None
    return next(codec for codec in CODECS if codec.name == CODEC_OF[backbone.name.split()[0]])


def share_of_time(backbone: Backbone, gpu: Gpu, streams: int) -> float:
    """Return the share of the frame period that a step and the codec take on one GPU."""
    codec = codec_of(backbone)
    share = step_ms(backbone, gpu, streams) * backbone.frame_rate / 1e3
    if codec is not None:
        share += streams / max(1, streams_of_codec(codec, gpu, codec.steady_frames))
    return share


def streams_of(backbone: Backbone, gpu: Gpu) -> int:
    """Return the number of streams that one GPU serves in real time with language model and codec; may be 0."""
    most = min(MOST_STREAMS, max(0, streams_in_memory(backbone, gpu)))
    return sum(1 for _ in takewhile(lambda n: share_of_time(backbone, gpu, n) <= SHARE_OF_TIME, range(1, most + 1)))


BUSY = 0.75  # share of a server's streams in use: deploy/helm, deploy/ray
GATEWAY_MS = 12.7  # processor time per second of mp3, the most expensive format (measured: docs/scale.md)
GATEWAY_BUSY = 0.6  # target share of a gateway's processor, for its autoscaler
GATEWAY_STREAMS = 256  # `--max-active` of a gateway
INSIDE_KBIT = 16 * 24.0 * 1.05  # server to gateway: 16-bit samples at 24 kHz, plus gRPC (estimated)
OUTSIDE_KBIT = {"pcm, wav": 16 * 24.0, "mp3, aac": 64.0, "opus": 32.0}  # `stretto_gateway.encoding.CODECS`
SIZES = (1, 8, 64, 1000)
# Models that generate audio.
COUNTED = tuple(backbone for backbone in BACKBONES if codec_of(backbone) is not None)


@dataclass(frozen=True)
class Prices:
    """Prices per hour in any currency, for a GPU with its share of a host and for a core of a gateway host."""

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
        """Number of cores for the gateways, each of which is a single process on one core."""
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


def cost_table(prices: Prices) -> str:
    """Return a table of each model's streams and cost of an hour of speech in Markdown."""
    head = [gpu.name for gpu in GPUS]
    lines = ["| one GPU: streams, hour of speech | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for backbone in COUNTED:
        cells = (_cost_cell(streams_of(backbone, gpu), prices) for gpu in GPUS)
        lines.append(f"| {backbone.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def fleet_table() -> str:
    """Return the table for docs/scale.md in Markdown."""
    one = streams_of(COUNTED[0], _gpu("H100 SXM"))
    outside = " | ".join(f"out, {name}" for name in OUTSIDE_KBIT)
    lines = [f"| GPUs | streams in use | gateway cores | servers to gateways | {outside} |"]
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu-price", type=float, default=Prices.gpu, help="price per hour; default: %(default)s")
    parser.add_argument("--core-price", type=float, default=Prices.core, help="price per hour; default: %(default)s")
    arguments = parser.parse_args(words)
    print(tables(), cost_table(Prices(arguments.gpu_price, arguments.core_price)), fleet_table(), sep="\n\n")


if __name__ == "__main__":
    main()
