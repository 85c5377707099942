"""Conversion of a release and creation of its model repository, in one child process (`jobs`).

Importing torch takes longer than either does for a small model.
"""

import argparse
import io
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

from stretto.convert import command, make_repository
from stretto.convert.conversion import plan, write
from stretto.convert.release import published
from stretto.errors import CheckpointError
from stretto.launcher.first_request import model_profile
from stretto.launcher.options import RepositoryOptions, ServedModel
from stretto.machine.gpus import GIB, bytes_of_gpu
from stretto.releases.jobs import Report, serve
from stretto.releases.messages import BadArgument, disk_errors
from stretto.weights.loading import TensorMismatch


def parsed(words: list[str]) -> argparse.Namespace:
    """Parse arguments of `stretto convert`; raise BadArgument if they are invalid."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return command.arguments(words)
    except SystemExit as error:
        raise BadArgument(" ".join(said.getvalue().split())) from error


def convert(report: Report, words: list[str], out: str, is_half: bool) -> dict[str, Any]:
    """Convert a release to a checkpoint; return `files` (size and SHA-256 by path), `num_tensors` and `dtype`.

    Args:
        report: Called with the number of written bytes.
        words: Arguments of `stretto convert` without `--out`.
        is_half: True to convert float32 weights to bfloat16, unless the family requires float32.
    """
    args = parsed([*words, "--out", out])
    release = command.release(args)
    conversion = plan(release)
    is_fixed = published(release).IS_FLOAT32 or release.dtype is not None
    if is_half and not is_fixed and conversion.record["dtype"] == "float32":
        conversion = plan(replace(release, dtype="bfloat16"))
    with disk_errors(Path(out)):
        files = write(conversion, Path(out), int(args.shard_gb * 1e9), report)
    return {
        "files": {file.name: {"bytes": file.num_bytes, "sha256": file.sha256} for file in files},
        "num_tensors": len(conversion.entries),
        "dtype": conversion.record["dtype"],
    }


def parse(report: Report, words: list[str]) -> None:
    """Raise BadArgument if arguments of `stretto convert` are invalid."""
    parsed([*words, "--out", "unused"])


def check(report: Report, words: list[str]) -> None:
    """Raise TensorMismatch if tensors of a release are missing, unknown or of another shape.

    The files contain zeros instead of weights, which may cause other errors. They are ignored, because the conversion
    reports real ones.
    """
    try:
        plan(command.release(parsed([*words, "--out", "unused"])))
    except TensorMismatch:
        raise
    except (CheckpointError, OSError):
        return


def repository(
    report: Report,
    checkpoint: str,
    out: str,
    model: list[str],
    placement: dict[str, Any] | None,
    quantize: str | None,
    gpu: int,
    serving: str,
) -> Any:
    """Create the model repository of a checkpoint, and return its model profile.

    Args:
        model: Name, key and revision of the model.
        placement: Arguments of `Placement` without the memory; None to serve on the CPU.
        gpu: Number of the server's GPU 0 in nvidia-smi.
    """
    memory_placement = None
    if placement is not None:
        num_bytes = bytes_of_gpu(gpu)
        memory_placement = make_repository.Placement(
            **placement, gpu_gib=None if num_bytes is None else num_bytes / GIB
        )
    make_repository.make(Path(checkpoint), Path(out), {}, memory_placement, quantize=quantize, serving=serving)
    shares_by_mps = memory_placement is not None and memory_placement.shares_by_mps
    name, key, revision = model
    RepositoryOptions(shares_by_mps, ServedModel(name, key, revision=revision)).write(Path(out))
    return model_profile(Path(out))


if __name__ == "__main__":
    serve({"check": check, "convert": convert, "parse": parse, "repository": repository})
