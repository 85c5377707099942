"""Which GPU holds which family, and how many streams at once: arithmetic, not measurement.

    python -m benchmarks.sizing            # the tables of docs/gpu.md

A step computes one row for each stream, two where it is guided, and must end before the next frame is due. It reads all
weights once, and the KV cache of every row; it computes two operations for each weight and row. Where a depth
transformer completes the frame, its layers are read again for each code. Memory holds weights and KV cache of the
longest reply. The codec computes in float32, on a GPU of its own or beside the language model. What is assumed beside
that are the constants below.
"""

from dataclasses import dataclass
from itertools import takewhile

BYTES = 2  # bfloat16
SHARE_OF_BANDWIDTH, SHARE_OF_COMPUTE = 0.75, 0.5  # of the data sheet's, that kernels reach
SHARE_OF_MEMORY = 0.85  # `gpu_memory_utilization` of `make-repository --gpu`
SHARE_OF_FLOAT32 = 0.3  # that a codec's convolutions reach
RESERVED_GB = 4.0  # activations, graphs, the codec, what hears audio
SHARE_OF_TIME = 0.8  # of the time between two frames, that a step may take
HOST_MS, HOST_MS_A_ROW = 1.0, 0.019  # of Python around a step: 2.2 ms at 64 rows
PASS_MS = 0.03  # that a layer of a depth transformer takes at least: ten small kernels of 3 µs, one behind the other
SECONDS, PROMPT_ROWS = 30.0, 200  # of the longest reply that all streams may reach at once; they are halfway on average
MOST_STREAMS = 1024


@dataclass(frozen=True)
class Shape:
    """Layers of a decoder; inner: of their MLPs, of all that a layer has together."""

    hidden: int
    layers: int
    kv_heads: int
    head_dim: int
    heads: int
    inner: int

    @property
    def layer_weights(self) -> int:
        """Of attention's four matrices and the MLP's three, in all layers."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.inner)


@dataclass(frozen=True)
class Depth(Shape):
    """A depth transformer: so many `passes` draw the codes of a frame behind the first, of `columns` each."""

    passes: int
    columns: int

    @property
    def weights(self) -> int:
        """With an embedding and a head for each pass."""
        return self.layer_weights + 2 * self.passes * self.columns * self.hidden

    def ms(self, gpu: "Gpu", rows: int) -> float:
        """What completes the frames of so many rows."""
        return self.passes * max(
            products_ms(self.layer_weights + self.columns * self.hidden, gpu, rows), self.launch_ms
        )

    @property
    def launch_ms(self) -> float:
        """The least that a pass takes, however fast the GPU."""
        return self.layers * PASS_MS


@dataclass(frozen=True)
class Backbone(Shape):
    """A language model. head_columns: of the output heads that a step reads. tables: 1 where there is no head over the
    vocabulary beside its embeddings, else 2."""

    name: str
    vocabulary: int
    head_columns: int
    frame_rate: float
    is_guided: bool
    tables: int = 2
    depth: Depth | None = None

    @property
    def weights(self) -> int:
        """With the embeddings, the head over them, and the depth transformer."""
        own = self.layer_weights + self.tables * self.vocabulary * self.hidden
        return own if self.depth is None else own + self.depth.weights

    @property
    def kv_bytes(self) -> int:
        """Of one row: keys and values of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_dim * BYTES

    @property
    def rows(self) -> int:
        """That a stream has in a step."""
        return 2 if self.is_guided else 1

    @property
    def longest(self) -> int:
        """Rows of a reply with its prompt."""
        return PROMPT_ROWS + round(SECONDS * self.frame_rate)


@dataclass(frozen=True)
class Gpu:
    """Numbers of the data sheet: memory, bandwidth, and operations a second in dense bfloat16 and in float32."""

    name: str
    memory_gb: float
    tb_per_s: float
    tflops: float
    float32_tflops: float


@dataclass(frozen=True)
class CodecCost:
    """Operations for a second of audio in chunks of 25 frames and of 8, context and all (torch's `FlopCounterMode`)."""

    name: str
    gflop: dict[int, float]


CSM_DEPTH = Depth(1024, 4, 2, 128, 8, 8_192, passes=31, columns=2_048)
QWEN3_TTS_DEPTH = Depth(1024, 5, 8, 128, 16, 3_072, passes=15, columns=2_048)
BACKBONES = (
    Backbone(4096, 36, 8, 128, 32, 12_288, "Bagpiper (Qwen3 8B), guided", 160_392, 8_200, 50.0, True),
    Backbone(4096, 36, 8, 128, 32, 12_288, "Bagpiper (Qwen3 8B), unguided", 160_392, 8_200, 50.0, False),
    Backbone(4096, 32, 32, 128, 32, 11_008, "OpusLM 7B (OLMo 2)", 113_870, 13_200, 50.0, False),
    Backbone(2048, 24, 32, 64, 32, 8_192, "OpusLM 1.7B (SmolLM2)", 113_870, 13_200, 50.0, False),
    Backbone(2048, 16, 8, 64, 32, 8_192, "CSM 1B (Llama 3.2)", 193_792, 2_049, 12.5, False, 1, CSM_DEPTH),
    Backbone(1024, 28, 8, 128, 16, 3_072, "Qwen3-TTS 0.6B", 185_728, 2_049, 12.5, False, 1, QWEN3_TTS_DEPTH),
    Backbone(2048, 28, 8, 128, 16, 6_144, "Qwen3-TTS 1.7B", 185_728, 2_049, 12.5, False, 1, QWEN3_TTS_DEPTH),
    Backbone(3072, 28, 8, 128, 24, 2 * 8_192, "Higgs Audio v2 (Llama 3.2 3B)", 136_464, 8_208, 25.0, False, 1),
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
    """How many of the longest replies the KV cache holds; 0 or less where the weights do not fit."""
    free = 1e9 * (SHARE_OF_MEMORY * gpu.memory_gb - RESERVED_GB) - BYTES * backbone.weights
    return int(free // (backbone.rows * backbone.longest * backbone.kv_bytes))


def step_ms(backbone: Backbone, gpu: Gpu, streams: int) -> float:
    """A step with that many streams, halfway: the device or the host, whichever is slower."""
    rows = streams * backbone.rows
    products = products_ms(backbone.layer_weights + backbone.head_columns * backbone.hidden, gpu, rows)
    attention = 1e3 * rows * backbone.longest / 2 * backbone.kv_bytes / (SHARE_OF_BANDWIDTH * gpu.tb_per_s * 1e12)
    depth = 0.0 if backbone.depth is None else backbone.depth.ms(gpu, rows)
    return max(products + attention + depth, HOST_MS + HOST_MS_A_ROW * rows)


def products_ms(weights: int, gpu: Gpu, rows: int) -> float:
    """The products of so many rows with so many weights: to read these, or to compute."""
    read_s = BYTES * weights / (SHARE_OF_BANDWIDTH * gpu.tb_per_s * 1e12)
    return 1e3 * max(read_s, 2 * rows * weights / (SHARE_OF_COMPUTE * gpu.tflops * 1e12))


def streams_in_time(backbone: Backbone, gpu: Gpu) -> int:
    """How many streams a step keeps at the rate of their frames."""
    limit_ms = SHARE_OF_TIME * 1e3 / backbone.frame_rate
    return sum(1 for _ in takewhile(lambda n: step_ms(backbone, gpu, n) <= limit_ms, range(1, MOST_STREAMS + 1)))


def streams_of_codec(codec: CodecCost, gpu: Gpu, frames: int) -> int:
    """How many streams in chunks of `frames` frames the codec keeps up with, with a GPU of its own."""
    return int(1e3 * SHARE_OF_FLOAT32 * gpu.float32_tflops // codec.gflop[frames])


def tables() -> str:
    """The tables in Markdown."""
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


def main() -> None:
    """Print them."""
    print(tables())


if __name__ == "__main__":
    main()
