"""Cost of a codec that decodes in blocks, and the difference between its blocks and one decode of the whole utterance.

    python -m benchmarks.blocks                    # narrow, random weights: half a minute
    python -m benchmarks.blocks --wide             # of published width: some minutes
    python -m benchmarks.blocks --checkpoint <dir>

Prints two Markdown tables and one line of JSON. The differences are those of one utterance: of the mel spectrogram,
relative to its standard deviation, and of the samples, relative to their level. The source of each block starts with
new phases, so samples may differ as much as those of two recordings of one sentence.
"""

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.checkpoints.random_glm4_voice import write_glm4_voice
from benchmarks.code_streams import random_codes, stream
from stretto.codecs.base import Window
from stretto.codecs.glm4_voice import Glm4VoiceCodec, load
from stretto.decoder.streaming import FrameWindow, Windower


def spans_of(codec: Glm4VoiceCodec, number: int) -> list[tuple[int, int]]:
    """Return the first and last frame of each of the first blocks of an utterance."""
    borders = [0]
    for _ in range(number):
        borders.append(borders[-1] + codec.blocks.size_after(borders[-1]))
    return list(pairwise(borders))


def blocks_of(codec: Glm4VoiceCodec, number: int) -> list[FrameWindow]:
    """Return the windows of the first blocks of an utterance."""
    spans = spans_of(codec, number)
    codes, windower = random_codes(codec, 1, spans[-1][1])[0].numpy(), Windower(codec.spec)
    pushed = [windower.push(codes[:, begin:end], False) for begin, end in spans]
    return [window for window in pushed if window is not None]


def cost(codec: Glm4VoiceCodec, window: FrameWindow, repeats: int) -> tuple[int, int, float, float, float]:
    """Return input tokens, new tokens, processor seconds, and processor seconds and GFLOP per second of audio."""
    size = codec.blocks.size_after(window.left + codec.blocks.right if window.left else 0)
    codes, first = torch.from_numpy(window.codes)[None], torch.tensor([window.first])
    batch = Window(codes, window.left, window.right, first, codec.initial_state(1))
    with FlopCounterMode(display=False) as counted:
        codec.decode(batch)
    spent, duration = float("inf"), size / codec.spec.frame_rate
    for _ in range(repeats):
        begun = time.process_time()
        codec.decode(batch)
        spent = min(spent, time.process_time() - begun)
    return window.codes.shape[1], size, spent, spent / duration, counted.get_total_flops() / 1e9 / duration


def one_decode(codec: Glm4VoiceCodec, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return mel [1, M, n] and samples [1, m] of codes [1, 1, T] decoded as a single block."""
    whole = Glm4VoiceCodec(codec.config, (codes.shape[2] + 1,), codes.shape[2] + 64)
    whole.load_state_dict(codec.state_dict())
    return decode(whole.eval().requires_grad_(False), codes)


def decode(codec: Glm4VoiceCodec, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the vocoder's input for codes [1, 1, T], a mel with each frame once, and the samples."""
    mels: list[Tensor] = []
    voice = codec.hift.source

    def recording(mel: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
        mels.append(mel[..., 1:] if mels else mel)
        return voice(mel, phases, noise)

    codec.hift.source = recording  # type: ignore[method-assign]
    pcm = stream(codec, codes, [codes.shape[2]])
    codec.hift.source = voice  # type: ignore[method-assign]
    return torch.cat(mels, 2), pcm


def differences(codec: Glm4VoiceCodec, frames: int) -> tuple[float, float]:
    """Return the differences of blocks from one decode: of the mel and of the samples, both relative."""
    codes = random_codes(codec, 1, frames)
    (mel, pcm), (whole_mel, whole_pcm) = decode(codec, codes), one_decode(codec, codes)
    of_mel = (mel - whole_mel).square().mean().sqrt() / whole_mel.std()
    of_pcm = (pcm - whole_pcm).square().mean().sqrt() / whole_pcm.square().mean().sqrt()
    return float(of_mel), float(of_pcm)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wide", action="store_true", help="random weights as wide as published")
    parser.add_argument("--checkpoint", type=Path, help="a published checkpoint")
    parser.add_argument("--blocks", type=int, default=4, help="number of timed blocks")
    parser.add_argument("--frames", type=int, nargs="*", default=[60, 175], help="lengths to compare")
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        codec = load(arguments.checkpoint or write_glm4_voice(Path(folder), is_narrow=not arguments.wide))
    begun = time.monotonic()
    costs = [cost(codec, window, arguments.repeats) for window in blocks_of(codec, arguments.blocks)]
    print(
        "| tokens read | of them new | s of a core | for a second of audio | GFLOP |\n| --- | --- | --- | --- | --- |"
    )
    for read, new, spent, share, operations in costs:
        print(f"| {read} | {new} | {spent:.2f} | {share:.2f} | {operations:.0f} |")
    errors = [(frames, *differences(codec, frames)) for frames in arguments.frames]
    print("\n| tokens | mel | samples |\n| --- | --- | --- |")
    for frames, of_mel, of_pcm in errors:
        print(f"| {frames} | {of_mel:.2g} | {of_pcm:.2g} |")
    record = {"costs": costs, "differences": errors, "wall_s": round(time.monotonic() - begun, 1)}
    print("\n" + json.dumps(record))


if __name__ == "__main__":
    main()
