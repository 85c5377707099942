"""Count the operations of each codec of published size for a second of audio (`DecoderSize.gflop_per_s`).

    python -m benchmarks.codec_operations                 # all codecs
    python -m benchmarks.codec_operations mimi pocket     # some codecs

A reply of 4 s is decoded in the chunks of the decoder, on torch's device `meta`. A codec for recorded voices reads a
voice of 3 s, which another reply has used before.
"""

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from lab.releases.every_codec import codec_cases
from stretto.codecs.base import Codec, CodecSpec, Window
from stretto.codecs.kernels import operators
from stretto.decoder.memory import META, Peak, tensors_to_meta
from stretto.decoder.windows import FrameWindow, Windower

REPLY_S = 4
# the case and a codec of published size for each name of a decoder's size
COUNTED = {
    counted: (case, make)
    for name, case in codec_cases().items()
    for counted, make in (case.counted or {name: partial(case.codec, is_narrow=False)}).items()
}


def gflop_per_s(counted: str) -> float:
    """Return the operations of `decoder_size(counted)` per second of audio, in units of 10⁹."""
    case, make = COUNTED[counted]
    codec: Any = make()
    list(tensors_to_meta(codec))
    spec = codec.spec
    state = codec.initial_state(1)
    if case.add_voice is not None:
        state[:, 0] = case.add_voice(codec)
    device = torch.device("cpu") if spec.reads_on_host else META
    for _ in range(2):
        total = 0.0
        for frames in _windows(spec, case.chunks):
            codes = torch.from_numpy(frames.codes)[None].to(device)
            first = torch.tensor([frames.first], device=device)
            total += operations_of(codec, Window(codes, frames.left, frames.right, first, state))[0]
    return total / REPLY_S


def operations_of(codec: Codec, window: Window) -> tuple[float, float]:
    """Return the operations of a window, and those of its convolutions, in units of 10⁹."""
    torch_only = patch.object(operators, "DEVICES", set[str]())  # the counter knows torch's operators only
    with torch_only, torch.inference_mode(), Peak(), FlopCounterMode(display=False) as counter:
        codec.decode(window)
    convolved = counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution, 0)
    return counter.get_total_flops() / 1e9, convolved / 1e9


def _windows(spec: CodecSpec, chunks: tuple[int, int]) -> Iterator[FrameWindow]:
    windower = Windower(spec)
    done = 0
    num_frames = round(REPLY_S * spec.frame_rate)
    size, steady = (1, 1) if spec.blocks else chunks
    while done < num_frames:
        size = min(size, num_frames - done)
        frames = windower.push(np.zeros((spec.num_codebooks, size), np.int64), done + size == num_frames)
        done = done + size
        size = steady
        if frames is not None:
            yield frames


def main(names: list[str]) -> None:
    for name in names or COUNTED:
        print(f"{name}: {gflop_per_s(name):.1f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
