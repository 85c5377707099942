"""Count the operations of each codec of published size for a second of audio (`stretto.codecs.decoder_sizes`).

    python -m benchmarks.codec_operations                 # all codecs
    python -m benchmarks.codec_operations mimi pocket     # some codecs

A reply of 4 s is decoded in the chunks of the decoder, on torch's device `meta`. A codec for recorded voices reads a
voice of 3 s, which another reply has used before.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.decoder_memory import CHUNKS
from lab.releases.every_codec import every_codec
from stretto.codecs.base import Codec, CodecSpec, Window
from stretto.codecs.decoder_sizes import GFLOP_PER_S
from stretto.codecs.kernels import operators
from stretto.codecs.recorded_voices import FlowVoice
from stretto.decoder.memory import META, Peak, tensors_to_meta
from stretto.decoder.streaming import FrameWindow, Windower
from stretto_chatterbox.s3gen import S3GenCodec
from stretto_cosyvoice3.codec import CosyVoice3Codec

REPLY_S = 4
VOICE_TOKENS = 75
MEANFLOW = "s3gen_meanflow"


def gflop_per_s(name: str) -> float:
    """Return the operations per second of audio in units of 10⁹.

    Args:
        name: Key of GFLOP_PER_S.
    """
    codec: Any = every_codec(name.removesuffix("_meanflow"), is_narrow=False)
    if isinstance(codec, S3GenCodec):
        estimator = replace(codec.config.estimator, is_meanflow=name == MEANFLOW)
        codec = S3GenCodec(replace(codec.config, estimator=estimator, voices=(VOICE_TOKENS,))).eval()
    list(tensors_to_meta(codec))
    spec = codec.spec
    state = codec.initial_state(1)
    if isinstance(codec, CosyVoice3Codec):
        codec._recorded.voices[1] = FlowVoice(VOICE_TOKENS, codec.config.mels, codec.config.speaker).to(META)
        state[:, 0] = 1
    device = torch.device("cpu") if spec.reads_on_host else META
    for _ in range(2):
        total = 0.0
        for frames in _windows(name, spec):
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


def _windows(name: str, spec: CodecSpec) -> Iterator[FrameWindow]:
    """Yield the windows of a reply."""
    windower = Windower(spec)
    done = 0
    num_frames = round(REPLY_S * spec.frame_rate)
    size, steady = (1, 1) if spec.blocks else CHUNKS[name.removesuffix("_meanflow")]
    while done < num_frames:
        size = min(size, num_frames - done)
        frames = windower.push(np.zeros((spec.num_codebooks, size), np.int64), done + size == num_frames)
        done = done + size
        size = steady
        if frames is not None:
            yield frames


def main(names: list[str]) -> None:
    """Print the operations of the named codecs, or of all."""
    for name in names or GFLOP_PER_S:
        print(f'    "{name}": {gflop_per_s(name):.1f},', flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
