"""Export a codec's decoder, or the preprocessor's features, to ONNX, and compare onnxruntime with torch.

    python -m scripts.export_onnx dac --checkpoint <dir>     # writes <dir>/codec/codec.onnx or <dir>/codec.onnx
    python -m scripts.export_onnx tiny                       # the bundled codec, next to its weights
    python -m scripts.export_onnx mel --out mel.onnx         # log-mel frames for the bundled codec's quantiser
    python -m scripts.export_onnx xcodec --wide              # random weights of the published width, to measure speed

An exported decoder runs in `acoustic_decoder` with the parameter `runtime: onnx`. The last output line is JSON. It has
the file size, the time that a steady window of one utterance takes on one thread, and the largest difference from
torch.
"""

import argparse
import json
import tempfile
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from benchmarks.codecs import STEADY, seconds_of, seconds_of_a_window
from benchmarks.harness import CHECKPOINT
from lab.releases.random_codecs import codec_of, models, write_checkpoint
from scripts.onnx_graphs.graphs import LogMel
from scripts.onnx_graphs.tiny_graph import TinyGraph
from stretto.codecs import onnx_runtime
from stretto.codecs.base import Codec, load_codec
from stretto.codecs.streaming import WindowedCodec
from stretto.codecs.tiny.codec import HOP, SAMPLE_RATE, TinyCodec, log_mel
from stretto.errors import CheckpointError
from stretto.family.plugin import family_at
from stretto.testing.codec_streams import random_codes, stream

TOLERANCE = 1e-4
SHAPES = ((1, 1), (2, 13), (3, 40))  # numbers of utterances and frames in each comparison


def export(
    graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], dynamic: dict[str, dict[int, str]]
) -> bytes:
    """Return the ONNX model of a graph. `dynamic` has the names of each input's dynamic axes, by axis."""
    program = torch.onnx.export(
        graph.eval(),
        tuple(inputs.values()),
        input_names=list(inputs),
        output_names=outputs,
        dynamic_shapes=tuple(dynamic.get(name) for name in inputs),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def export_codec(codec: Codec, file: Path) -> None:
    """Write a codec's decoder; raise ValueError if only torch can run the codec."""
    codes = random_codes(codec, 2, 13)
    axes = {"codes": {0: "batch", 2: "frames"}}
    if isinstance(codec, WindowedCodec):
        model = export(codec, {"codes": codes}, ["pcm"], axes)
    elif isinstance(codec, TinyCodec):
        inputs = {"codes": codes, "first": torch.tensor([20, 50]), "state": codec.initial_state(2)}
        model = export(
            TinyGraph(codec), inputs, ["pcm", "next_state"], axes | {"first": {0: "batch"}, "state": {0: "batch"}}
        )
    else:
        raise ValueError(f"{codec.spec.name} carries a state that cannot be exported")
    write(model, file, {onnx_runtime.SPEC_KEY: onnx_runtime.spec_to_json(codec.spec)})


def export_mel(file: Path) -> None:
    """Write the feature extractor, which maps pcm [B, n] to log-mel frames."""
    pcm = torch.zeros(2, SAMPLE_RATE)
    write(export(LogMel(), {"pcm": pcm}, ["log_mel"], {"pcm": {0: "batch", 1: "samples"}}), file, {})


def write(model: bytes, file: Path, metadata: dict[str, str]) -> None:
    """Check a model, add metadata, and save it."""
    proto = onnx.load_from_string(model)
    onnx.checker.check_model(proto)
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, str(file))


def compare_codec(codec: Codec, file: Path) -> dict[str, float]:
    """Return the times that the exported and the original codec take, and their largest difference."""
    exported = onnx_runtime.load_file(file)
    differences = []
    for batch, frames in SHAPES:
        codes = random_codes(codec, batch, frames)
        differences.append((stream(exported, codes, [5] * frames) - stream(codec, codes, [frames])).abs().max())
    seconds = [seconds_of_a_window(decoder, STEADY) for decoder in (codec, exported)]
    return report(differences, seconds, STEADY / codec.spec.frame_rate)


def compare_mel(file: Path) -> dict[str, float]:
    """Return the times of both extractors for 5 s of audio, and the largest difference of their outputs."""
    session = onnx_runtime.open_session(file)
    differences = []
    for batch, length in ((1, HOP), (2, 12_345), (1, 5 * SAMPLE_RATE)):
        pcm = torch.randn(batch, length, generator=torch.Generator().manual_seed(length)) / 10
        [features] = session.run(["log_mel"], {"pcm": pcm.numpy()})
        differences.append((torch.from_numpy(features) - log_mel(pcm)).abs().max())
    seconds = [seconds_of(lambda: log_mel(pcm)), seconds_of(lambda: session.run(None, {"pcm": pcm.numpy()}))]
    return report(differences, seconds, 5)


def report(differences: list[Tensor], seconds: list[float], audio_s: float) -> dict[str, float]:
    """Return the largest difference, and the times for `audio_s` of audio in torch and in onnxruntime."""
    return {
        "max_difference": float(max(differences)),
        "torch_ms": round(1000 * seconds[0], 2),
        "onnx_ms": round(1000 * seconds[1], 2),
        "torch_times_real_time": round(audio_s / seconds[0], 1),
        "onnx_times_real_time": round(audio_s / seconds[1], 1),
    }


def codec_file(checkpoint: Path) -> Path:
    """Return the path at which the decoder expects a checkpoint's exported codec."""
    return (checkpoint / "codec" if (checkpoint / "codec").is_dir() else checkpoint) / onnx_runtime.FILE


def codebooks_of(checkpoint: Path) -> int | None:
    """Return the number of codebooks of a checkpoint's speech model; None (all) if the folder has only a codec."""
    try:
        return family_at(checkpoint).layout.num_codebooks
    except CheckpointError:
        return None


def export_named(name: str, checkpoint: Path, out: Path | None) -> dict[str, object]:
    """Export the named codec, or `mel`, and return its measurements."""
    file = out or codec_file(checkpoint)
    if name == "mel":
        export_mel(file)
        measured = compare_mel(file)
    else:
        codec = load_codec(codec_of(name), checkpoint, num_codebooks=codebooks_of(checkpoint))
        export_codec(codec, file)
        measured = compare_codec(codec, file)
    return {"name": name, "file_bytes": file.stat().st_size, **measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["mel", "tiny", "dac", *models()]
    parser.add_argument("name", choices=names, metavar="name", help=f"one of {', '.join(names)}")
    parser.add_argument("--checkpoint", type=Path, help="the codec's folder; default: random weights")
    parser.add_argument("--wide", action="store_true", help="use random weights of the published width")
    parser.add_argument("--out", type=Path, help="output file; the server reads codec.onnx of the checkpoint")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = arguments.checkpoint
        weights = "published"
        if arguments.name in ("mel", "tiny"):
            checkpoint = checkpoint or CHECKPOINT
        elif checkpoint is None:
            checkpoint = write_checkpoint(arguments.name, Path(directory), is_narrow=not arguments.wide)
            weights = "random, wide" if arguments.wide else "random, narrow"
        row = export_named(arguments.name, checkpoint, arguments.out)
    print(json.dumps(row | {"weights": weights}))
    if not row["max_difference"] <= TOLERANCE:  # type: ignore[operator]
        raise SystemExit(f"onnxruntime differs from torch by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
