"""Print the memory of the decoder on a GPU with each codec of published size.

    python -m benchmarks.decoder_memory                 # all codecs: the table in docs/gpu_sizes.md
    python -m benchmarks.decoder_memory mimi pocket     # some codecs

Sizes are computed from shapes, without a GPU (`stretto.decoder.memory`).
"""

import sys
from functools import cache
from typing import Any

from lab.releases.every_codec import codec_cases, every_codec
from stretto.codecs.streaming import join_constants
from stretto.config import DecoderConfig
from stretto.decoder.memory import DecoderMemory, measure
from stretto.family.plugin import decoder_size

# First and steady chunk size in frames of a family that uses the codec.
CHUNKS = {name: case.chunks for name, case in codec_cases().items()}
# written by `make-repository --gpu`
MAX_BATCH = 64
MAX_UTTERANCES = 320
FEWER_UTTERANCES = 40  # with a codec whose states limit the number of batch slots (`DecoderSize.state_bytes`)


@cache
def memory_of(name: str) -> DecoderMemory:
    """Return the memory of a decoder with a codec of published size."""
    first, steady = CHUNKS[name]
    config = DecoderConfig(
        device="cuda",
        max_batch=MAX_BATCH,
        max_utterances=FEWER_UTTERANCES if decoder_size(name).state_bytes else MAX_UTTERANCES,
        first_frames=first,
        steady_frames=steady,
    )
    codec: Any = every_codec(name, is_narrow=False)
    join_constants(codec)  # as codecs are loaded
    return measure(codec, config)


def table(measured: dict[str, DecoderMemory]) -> str:
    """Return the table in Markdown, memory in GB."""
    head = "weights", "graphs", "activations", f"{MAX_UTTERANCES} streams", "decoder"
    lines = ["| codec | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for name, memory in measured.items():
        sizes = (memory.weights, memory.static, memory.activations, memory.utterances, memory.total)
        cells = (f"{size / 1e9:.2f}" for size in sizes)
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    print(table({name: memory_of(name) for name in names or CHUNKS}))


if __name__ == "__main__":
    main(sys.argv[1:])
