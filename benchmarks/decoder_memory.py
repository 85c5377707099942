"""Print the memory of the decoder on a GPU with each codec of published size, and its launches for a window.

    python -m benchmarks.decoder_memory                 # all codecs: the table in docs/gpu_sizes.md
    python -m benchmarks.decoder_memory mimi pocket     # some codecs

Sizes are computed from shapes, without a GPU (`stretto.decoder.memory`).
"""

import sys
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from lab.releases.every_codec import codec_cases, every_codec
from stretto.codecs.base import Codec
from stretto.codecs.streaming import join_constants
from stretto.config import DecoderConfig
from stretto.decoder.memory import DecoderMemory, Peak, in_rows, largest_batches, measure
from stretto.decoding.states import decode_in_rows
from stretto.family.plugin import decoder_size
from stretto.testing.fake_gpu import Launches

# First and steady chunk size in frames of a family that uses the codec.
CHUNKS = {name: case.chunks for name, case in codec_cases().items()}
# written by `make-repository --gpu`
MAX_BATCH = 64
MAX_UTTERANCES = 320
FEWER_UTTERANCES = 40  # with a codec whose states limit the number of batch slots (`DecoderSize.state_bytes`)


@dataclass(frozen=True)
class Row:
    """Memory of a decoder. `launches` is its number of GPU operators for an utterance's longest usual window."""

    memory: DecoderMemory
    launches: int


def launches(codec: Codec, config: DecoderConfig) -> int:
    """Return `Row.launches` of a codec whose weights are on META."""
    *_, window = largest_batches(codec, replace(config, max_batch=1))
    if codec.spec.can_capture:
        window = in_rows(window)
    with Peak(), Launches() as counter, torch.inference_mode():
        decode_in_rows(codec)(window)
    return len(counter.names)


@cache
def row_of(name: str) -> Row:
    """Return the row of a codec with published sizes."""
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
    return Row(measure(codec, config), launches(codec, config))


def table(measured: dict[str, Row]) -> str:
    """Return the table in Markdown, memory in GB."""
    head = "weights", "graphs", "activations", f"{MAX_UTTERANCES} streams", "decoder"
    lines = ["| codec | " + " | ".join(head) + " | launches |", "|---|" + "---|" * (len(head) + 1)]
    for name, row in measured.items():
        memory = row.memory
        sizes = (memory.weights, memory.static, memory.activations, memory.utterances, memory.total)
        cells = (f"{size / 1e9:.2f}" for size in sizes)
        lines.append(f"| `{name}` | " + " | ".join(cells) + f" | {row.launches:,} |")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    print(table({name: row_of(name) for name in names or CHUNKS}))


if __name__ == "__main__":
    main(sys.argv[1:])
