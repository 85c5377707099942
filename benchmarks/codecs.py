"""Measure the streaming properties of each codec: context, exactness, error with less right context, and speed.

    python -m benchmarks.codecs                          # all codecs, narrow, random weights: takes a minute
    python -m benchmarks.codecs xcodec --wide            # speed of one codec of published width
    python -m benchmarks.codecs dac --checkpoint <dir>   # errors of one codec with its published weights
    python -m benchmarks.codecs --long 600               # exactness of a stream of ten minutes
    python -m benchmarks.codecs --blocks 4 --wide        # GLM-4-Voice's block decoder: costs and deviation
    python -m benchmarks.codecs s3gen --blocks 4         # the same for Chatterbox; s3gen_meanflow: Turbo and Nano

The benchmark prints two Markdown tables (different ones with `--long` and `--blocks`) and one line of JSON. Contexts
and exactness depend only on strides and kernels. The error with less context depends on the weights, so a trained codec
may have other errors than one with random weights.
"""

import argparse
import copy
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lab.releases.every_codec import make_codec
from lab.releases.random_codecs import STATEFUL, models
from lab.releases.random_glm4_voice import write_glm4_voice
from plugins.chatterbox.lab import random_s3gen
from stretto.codecs import glm4_voice
from stretto.codecs.base import Blocks, Codec, Window, load_codec
from stretto.codecs.espnet_dac import multiply_weight_norm_out
from stretto.codecs.glm4_voice import Glm4VoiceCodec
from stretto.codecs.recorded_voices import FlowVoice
from stretto.decoder.windows import FrameWindow, Windower
from stretto.entry_points import CODECS, names
from stretto.testing.codec_streams import chunks_of, random_codes, stream
from stretto_chatterbox import s3gen
from stretto_chatterbox.s3gen import S3GenCodec, S3GenConfig

CHUNK = 5  # frames per chunk
OTHER_CHUNK = 7  # another chunk size, to compare with chunks of the steady size in a long stream
STEADY = 25  # frames in the timed window


@dataclass(frozen=True, slots=True)
class Streaming:
    """Row of the first table. `max_difference` compares streamed samples with a one-shot decode."""

    codec: str
    weights: str
    sample_rate: int
    frames_per_s: float
    left_frames: int
    right_frames: int
    look_ahead_ms: float
    tail_samples: int
    max_difference: float
    times_real_time: float


@dataclass(frozen=True, slots=True)
class Dial:
    """Row of the second table. `relative_error` is the rms error over the one-shot decode's standard deviation."""

    codec: str
    right_frames: int
    look_ahead_ms: float
    relative_error: float
    max_difference: float


@dataclass(frozen=True, slots=True)
class Long:
    """Row of the third table: the largest differences between samples of one long utterance.

    Attributes:
        chunkings: Chunks of STEADY frames against chunks of OTHER_CHUNK frames.
        streamed: Chunks of STEADY frames against a one-shot decode.
        streamed_from_float64: Chunks of STEADY frames against a one-shot decode in float64.
        whole_from_float64: A one-shot decode in float32 against one in float64.
    """

    codec: str
    seconds: float
    level: float
    chunkings: float
    streamed: float
    streamed_from_float64: float
    whole_from_float64: float


def ms_of(codec: Codec, frames: int) -> float:
    """Return the duration of `frames` frames in milliseconds."""
    return round(1000 * frames / codec.spec.frame_rate, 1)


def measure_streaming(name: str, weights: str, codec: Codec, codes: torch.Tensor) -> Streaming:
    """Measure the accuracy and the speed of a codec that streams codes [B, K, T]."""
    spec = codec.spec
    total = codes.shape[2]
    difference = stream(codec, codes, chunks_of(CHUNK, total)) - stream(codec, codes, [total])
    return Streaming(
        codec=name,
        weights=weights,
        sample_rate=spec.sample_rate,
        frames_per_s=round(spec.frame_rate, 2),
        left_frames=spec.left_frames,
        right_frames=spec.right_frames,
        look_ahead_ms=ms_of(codec, spec.right_frames),
        tail_samples=spec.tail_samples,
        max_difference=float(difference.abs().max()),
        times_real_time=round(STEADY / spec.frame_rate / seconds_of_a_window(codec, STEADY), 1),
    )


def measure_dial(name: str, codec: Codec, codes: torch.Tensor) -> Iterator[Dial]:
    """Yield the error in windows of CHUNK frames for each right context, from the smallest to the one without error."""
    exact = codec.spec
    total = codes.shape[2]
    whole = stream(codec, codes, [total])
    for right in range(exact.min_right_frames, exact.right_frames + 1):
        codec.spec = exact.with_right_frames(right)
        difference = stream(codec, codes, chunks_of(CHUNK, total)) - whole
        error = float(difference.square().mean().sqrt() / whole.std())
        yield Dial(name, right, ms_of(codec, right), error, float(difference.abs().max()))
    codec.spec = exact


def measure_long(name: str, codec: Codec, seconds: float) -> Long:
    """Measure how exactly an utterance of `seconds` streams, compared with float32 and float64 decodes."""
    assert isinstance(codec, nn.Module), type(codec)
    exact = copy.deepcopy(codec).double()  # before `codec` decodes, because Mimi caches derived codebooks
    total = round(seconds * codec.spec.frame_rate)
    codes = random_codes(codec, 1, total)
    truth = stream(exact, codes, [total])
    whole, steady, other = (stream(codec, codes, chunks_of(size, total)) for size in (total, STEADY, OTHER_CHUNK))
    pairs = ((steady, other), (steady, whole), (steady, truth), (whole, truth))
    differences = [float((one - another).abs().max()) for one, another in pairs]
    return Long(name, round(total / codec.spec.frame_rate, 1), float(whole.square().mean().sqrt()), *differences)


def seconds_of_a_window(codec: Codec, frames: int) -> float:
    """Return the processor seconds for one steady window of one utterance."""
    spec = codec.spec
    codes = random_codes(codec, 1, spec.left_frames + frames + spec.right_frames)
    first = torch.tensor([spec.left_frames])
    window = Window(codes, spec.left_frames, spec.right_frames, first, codec.initial_state(1))
    return seconds_of(lambda: codec.decode(window))


def seconds_of(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the processor seconds of `work`: the best of `repeats` runs after a warm-up."""
    work()
    best = float("inf")
    for _ in range(repeats):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return best


def table(rows: list[Streaming] | list[Dial] | list[Long]) -> str:
    names = [declared.name for declared in fields(rows[0])]
    lines = [names, ["---"] * len(names), *[[_cell(value) for value in asdict(row).values()] for row in rows]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.2g}" if isinstance(value, float) and 0 < abs(value) < 10 else str(value)


def codecs(names: list[str], checkpoint: Path | None, is_wide: bool) -> Iterator[tuple[str, str, Codec]]:
    """Yield each name with the kind of weights and the codec."""
    weights = "random, wide" if is_wide else "random, narrow"
    for name in names:
        if checkpoint is not None:
            yield name, "published", load_codec(name, checkpoint)
        else:
            yield name, "published" if name == "tiny" else weights, make_codec(name, "cpu", not is_wide)


BlockCodec = Glm4VoiceCodec | S3GenCodec
S3GEN = ("s3gen", "s3gen_meanflow")
# a voice of 6 s
S3GEN_BLOCKS = (28, 50, 100)
VOICE_TOKENS = 150


def blocks_in(codec: BlockCodec) -> Blocks:
    """Return the streaming mode of a codec that decodes in blocks."""
    assert isinstance(codec.spec.streaming, Blocks)
    return codec.spec.streaming


def block_codec(arguments: argparse.Namespace) -> BlockCodec:
    """Return the block codec that the command line names."""
    name = (arguments.codecs or ["glm4_voice"])[0]
    if name not in S3GEN:
        with tempfile.TemporaryDirectory() as folder:
            weights = arguments.checkpoint or write_glm4_voice(Path(folder), is_narrow=not arguments.wide)
            return glm4_voice.load(weights)
    if arguments.checkpoint is None:
        return random_s3gen_codec(name == "s3gen_meanflow", arguments.wide)
    whole = s3gen.load(arguments.checkpoint)
    codec = S3GenCodec(whole.config, S3GEN_BLOCKS)
    codec.load_state_dict(whole.state_dict())
    return codec.eval().requires_grad_(False)


def random_s3gen_codec(is_meanflow: bool, is_wide: bool) -> S3GenCodec:
    """Return S3Gen as a block codec, with random weights and one random voice."""
    shape = random_s3gen.WIDE if is_wide else random_s3gen.NARROW
    shape = replace(shape, estimator=replace(shape.estimator, is_meanflow=is_meanflow))
    drawn = multiply_weight_norm_out(random_s3gen.tensors(shape))
    plain = {name: tensor for name, tensor in drawn.items() if not name.startswith(("tokenizer.", "speaker_encoder."))}
    config = S3GenConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in plain.items()})
    codec = S3GenCodec(replace(config, voices=(VOICE_TOKENS,)), S3GEN_BLOCKS)
    heard = random_s3gen.conditions(1, VOICE_TOKENS)
    parts = {"tokens": heard["prompt_token"][0], "mel": heard["prompt_feat"][0].T, "speaker": heard["embedding"][0]}
    codec.load_state_dict(plain | {f"voices.0.{name}": tensor for name, tensor in parts.items()})
    return codec.eval().requires_grad_(False)


def spans_of(codec: BlockCodec, number: int) -> list[tuple[int, int]]:
    """Return the frame range (start, stop) of each of the first `number` blocks."""
    borders = [0]
    for _ in range(number):
        borders.append(borders[-1] + blocks_in(codec).size_after(borders[-1]))
    return list(pairwise(borders))


def blocks_of(codec: BlockCodec, number: int) -> list[FrameWindow]:
    """Return the windows of the first `number` blocks of an utterance with random codes."""
    spans = spans_of(codec, number)
    codes = random_codes(codec, 1, spans[-1][1])[0].numpy()
    windower = Windower(codec.spec)
    pushed = [windower.push(codes[:, begin:end], False) for begin, end in spans]
    return [window for window in pushed if window is not None]


def cost(codec: BlockCodec, window: FrameWindow) -> tuple[int, int, float, float, float]:
    """Return a window's input tokens, new tokens and processor seconds, and seconds and GFLOP per second of audio."""
    size = blocks_in(codec).size_after(window.left + blocks_in(codec).right if window.left else 0)
    codes = torch.from_numpy(window.codes)[None]
    first = torch.tensor([window.first])
    batch = Window(codes, window.left, window.right, first, codec.initial_state(1))
    with FlopCounterMode(display=False) as counted:
        codec.decode(batch)
    spent = seconds_of(lambda: codec.decode(batch), repeats=1)
    duration = size / codec.spec.frame_rate
    return window.codes.shape[1], size, spent, spent / duration, counted.get_total_flops() / 1e9 / duration


def one_decode(codec: BlockCodec, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return mel [1, M, n] and samples [1, m] of codes [1, 1, T] decoded as a single block."""
    sizes = (codes.shape[2] + 1,)
    history = codes.shape[2] + 64
    whole = S3GenCodec(codec.config) if isinstance(codec, S3GenCodec) else Glm4VoiceCodec(codec.config, sizes, history)
    whole.load_state_dict(codec.state_dict())
    return decode(whole.eval().requires_grad_(False), codes)


def decode(codec: BlockCodec, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Decode codes [1, 1, T]; return the vocoder's input mel, in which each frame occurs once, and the samples."""
    mels: list[Tensor] = []
    if isinstance(codec, S3GenCodec):
        make = codec.mel

        def making(
            codes: Tensor, voice: FlowVoice, known_mel: Tensor | None = None, start: int = 0, ahead: int = 0
        ) -> Tensor:
            mel = make(codes, voice, known_mel, start, ahead)
            mels.append(mel[..., 0 if known_mel is None else known_mel.shape[2] :])
            return mel

        codec.mel = making  # type: ignore[method-assign]
        pcm = stream(codec, codes, [codes.shape[2]])
        codec.mel = make  # type: ignore[method-assign]
        return torch.cat(mels, 2), pcm
    voice = codec.hift.source

    def recording(mel: Tensor, phases: Tensor, noise: Tensor) -> Tensor:
        mels.append(mel[..., 1:] if mels else mel)
        return voice(mel, phases, noise)

    codec.hift.source = recording  # type: ignore[method-assign]
    pcm = stream(codec, codes, [codes.shape[2]])
    codec.hift.source = voice  # type: ignore[method-assign]
    return torch.cat(mels, 2), pcm


def differences(codec: BlockCodec, frames: int) -> tuple[float, float]:
    """Return the relative differences of the mel and of the samples between block and one-shot decoding."""
    codes = random_codes(codec, 1, frames)
    (mel, pcm), (whole_mel, whole_pcm) = decode(codec, codes), one_decode(codec, codes)
    of_mel = (mel - whole_mel).square().mean().sqrt() / whole_mel.std()
    of_pcm = (pcm - whole_pcm).square().mean().sqrt() / whole_pcm.square().mean().sqrt()
    return float(of_mel), float(of_pcm)


def print_blocks(codec: BlockCodec, arguments: argparse.Namespace) -> None:
    """Print the costs of blocks, and the deviation of utterances decoded in blocks from a one-shot decode."""
    costs = [cost(codec, window) for window in blocks_of(codec, arguments.blocks)]
    print("| tokens read | of them new | s of a core | for a second of audio | GFLOP |\n|---|---|---|---|---|")
    for read, new, spent, share, operations in costs:
        print(f"| {read} | {new} | {spent:.2f} | {share:.2f} | {operations:.0f} |")
    errors = [(frames, *differences(codec, frames)) for frames in arguments.lengths]
    print("\n| tokens | mel | samples |\n|---|---|---|")
    for frames, of_mel, of_pcm in errors:
        print(f"| {frames} | {of_mel:.2g} | {of_pcm:.2g} |")
    print("\n" + json.dumps({"costs": costs, "differences": errors}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every_name = ["tiny", *models(), *STATEFUL]
    parser.add_argument("codecs", nargs="*", metavar="codec", help=f"of {', '.join(every_name)}; default: all")
    parser.add_argument("--checkpoint", type=Path, help=f"a published checkpoint of one of the codecs {names(CODECS)}")
    parser.add_argument("--wide", action="store_true", help="use random weights of the published width")
    parser.add_argument("--frames", type=int, default=60, help="frames per utterance")
    parser.add_argument("--batch", type=int, default=4, help="utterances")
    parser.add_argument("--long", type=float, metavar="SECONDS", help="seconds of one utterance, for the third table")
    parser.add_argument("--blocks", type=int, help="number of blocks to time, for a block codec")
    parser.add_argument("--lengths", type=int, nargs="*", default=[60, 175], help="frames to compare, with --blocks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.blocks is not None:
        print_blocks(block_codec(arguments), arguments)
        return
    measured = codecs(arguments.codecs or every_name, arguments.checkpoint, arguments.wide)
    if arguments.long is not None:
        rows = [measure_long(name, codec, arguments.long) for name, _, codec in measured]
        print(table(rows), json.dumps({"long": [asdict(row) for row in rows]}), sep="\n\n")
        return
    streaming: list[Streaming] = []
    dials: list[Dial] = []
    for name, weights, codec in measured:
        codes = random_codes(codec, arguments.batch, arguments.frames)
        streaming.append(measure_streaming(name, weights, codec, codes))
        dials += measure_dial(name, codec, codes)
    print(table(streaming), table(dials), sep="\n\n", end="\n\n")
    print(json.dumps({"streaming": [asdict(row) for row in streaming], "dial": [asdict(row) for row in dials]}))


if __name__ == "__main__":
    main()
