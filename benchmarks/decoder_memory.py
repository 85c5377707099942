"""Print how much memory the decoder needs on a GPU with each codec of published size.

    python -m benchmarks.decoder_memory                 # all codecs: the table in docs/gpu.md
    python -m benchmarks.decoder_memory mimi pocket     # some codecs

Sizes are computed from shapes, without a GPU (`stretto.decoder.memory`).
"""

import sys
from dataclasses import dataclass
from functools import cache

from benchmarks.checkpoints.every_codec import every_codec
from stretto.config import DecoderConfig
from stretto.decoder.memory import DecoderMemory, measure

# First and steady chunk size in frames of the family that uses the codec.
CHUNKS = {
    "audiovae": (1, 6),
    "cosyvoice3": (4, 25),
    "dac": (4, 25),
    "encodec": (4, 25),
    "espnet_dac": (4, 25),
    "fish_s2": (2, 21),
    "glm4_voice": (10, 25),
    "higgs": (4, 25),
    "mimi": (2, 12),
    "moss": (2, 12),
    "pocket": (1, 12),
    "qwen3_12hz": (2, 12),
    "qwen3_omni": (2, 12),
    "s3gen": (4, 25),
    "tiny": (4, 25),
    "vibevoice": (1, 8),
    "xcodec": (8, 25),
}
MAX_BATCH, MAX_UTTERANCES = 64, 320  # written by `make-repository --gpu`
FEWER_UTTERANCES = {"moss": 40}  # of codecs whose states limit the number of batch slots (`decoder_sizes.STATES_BYTES`)


@dataclass(frozen=True)
class Row:
    """Memory of a decoder.

    Attributes:
        memory: Memory in bytes.
        unshared: Memory of the states if each graph had its own, captured for chunks of 1 to 25 frames.
    """

    memory: DecoderMemory
    unshared: int


@cache
def row_of(name: str) -> Row:
    """Return the memory of a decoder with the published sizes of a codec."""
    first, steady = CHUNKS[name]
    config = DecoderConfig(
        device="cuda",
        max_batch=MAX_BATCH,
        max_utterances=FEWER_UTTERANCES.get(name, MAX_UTTERANCES),
        first_frames=first,
        steady_frames=steady,
    )
    codec = every_codec(name, is_narrow=False)
    memory = measure(codec, config)
    num_shapes = 1 if codec.spec.blocks else 6 + bool(codec.spec.left_frames)
    return Row(memory, memory.static // MAX_BATCH * num_shapes * (2 * MAX_BATCH - 1))


def table(found: dict[str, Row]) -> str:
    """Return the table in Markdown, in GB."""
    head = "weights", "graphs, unshared", "graphs", "activations", "a stream", f"{MAX_UTTERANCES} streams", "decoder"
    lines = ["| codec | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for name, row in found.items():
        memory = row.memory
        sizes = memory.weights, row.unshared, memory.static, 2 * memory.peak
        cells = (f"{size / 1e9:.2f}" for size in (*sizes, memory.utterance, memory.utterances, memory.total))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Print the table of the named codecs, or of all."""
    print(table({name: row_of(name) for name in names or CHUNKS}))


if __name__ == "__main__":
    main(sys.argv[1:])
