"""Errors of codecs whose convolutions are computed on tensor cores, against float32, without a GPU.

    python -m benchmarks.convolutions             # all codecs: the table in docs/gpu_sizes.md
    python -m benchmarks.convolutions mimi tiny   # some codecs

The operands are rounded as tensor cores need them, and their products are exact in float32 here, too. Only the order in
which they are added differs from that on a GPU. Except for `tiny`, weights and codes are random. Sizes are published
ones, except for the codecs in NARROW.
"""

import math
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.decoder_memory import CHUNKS
from lab.releases.every_codec import every_codec
from stretto.codecs.base import Codec, Window
from stretto.config import DecoderConfig
from stretto.decoding.convolutions import convolutions_in
from stretto.streams.layout import words_of
from stretto.testing.fake_gpu import layout_of_a_gpu

PRECISIONS = [*DecoderConfig.CONVOLUTIONS][1:]
# The others would take minutes.
NARROW = (
    "audiovae cosyvoice3 dac fish_s2 glm4_voice indextts2 moss moss_nano nanocodec qwen3_omni s3gen vibevoice"
).split()
WHOLE_FRAMES = 50  # of a codec that decodes whole utterances


@dataclass(frozen=True, slots=True)
class Row:
    """Errors of a codec.

    Attributes:
        is_narrow: True if the codec has fewer channels than published.
        decibels: Mean power of the difference, relative to that of the samples, in dB, by precision.
    """

    is_narrow: bool
    decibels: dict[str, float]


def row_of(name: str) -> Row:
    """Return the errors of a codec for the first window of an utterance, in its steady size."""
    torch.manual_seed(0)
    codec = every_codec(name, name in NARROW)
    window = first_window(codec, CHUNKS[name][1])
    with layout_of_a_gpu(), torch.inference_mode():
        exact = decoded(codec, window, "float32")
        decibels = dict[str, float]()
        for precision in PRECISIONS:
            difference = decoded(codec, window, precision) - exact
            ratio = difference.square().mean().sqrt().item() / exact.std().item()
            decibels[precision] = 20 * math.log10(ratio) if ratio else -math.inf
    return Row(name in NARROW, decibels)


def decoded(codec: Codec, window: Window, precision: str) -> Tensor:
    with convolutions_in(precision):
        return codec.decode(window)[0]


def first_window(codec: Codec, num_frames: int) -> Window:
    """Return an utterance's first window with random codes. Codecs with fixed sizes ignore `num_frames`."""
    spec = codec.spec
    num_frames = spec.blocks[0] if spec.blocks else WHOLE_FRAMES if spec.max_frames else num_frames + spec.right_frames
    right = spec.right_frames if spec.max_frames is None else 0
    if spec.are_latents:
        codes = torch.from_numpy(words_of(torch.randn(1, num_frames, spec.num_codebooks).numpy())).transpose(1, 2)
    else:
        codes = torch.randint(spec.codebook_size, (1, spec.num_codebooks, num_frames))
    return Window(codes.long(), 0, right, torch.zeros(1, dtype=torch.int64), codec.initial_state(1))


def line_of(name: str, row: Row) -> str:
    cells = [f"{row.decibels[precision]:.0f}" for precision in PRECISIONS]
    sizes = "narrow" if row.is_narrow else "published"
    return f"| `{name}` | {sizes} | " + " | ".join(cells) + " |"


def main(names: list[str]) -> None:
    print(
        "| codec | sizes | " + " | ".join(PRECISIONS) + " |",
        "|---|---|" + "---|" * len(PRECISIONS),
        sep="\n",
    )
    for name in names or CHUNKS:
        print(line_of(name, row_of(name)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
