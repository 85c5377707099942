"""Measure the most valuable figures of fifteen minutes on a GPU, most valuable first.

    python -m benchmarks.gpu.quarter pack                   # here: packs the bundle, prints sizes and the calls
    python -m benchmarks.gpu.quarter --out DIR              # on the GPU
    python -m benchmarks.gpu.quarter --out DIR --dry-run    # on the CPU, with a tiny model: run all code paths

The host starts bare. The first call installs a part of the bundle. The second one installs the rest and runs the jobs
(`jobs.QUARTER`), each in a separate process with a time limit. Lines are written at once. The working tree is sent
without the bundled model's weights and the tests' data, which no job needs. The bundle has the kernels of codec and
depth transformer, which take longer to compile than to measure.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu import plan
from benchmarks.gpu.__main__ import main, parse
from benchmarks.gpu.bundling.contents import KERNELS
from benchmarks.gpu.jobs import QUARTER
from benchmarks.harness import ROOT

BUNDLE = "served"
RUN_S = 560.0  # of the second call's 600 s
SPARSE = ("/*", "!/model_repository/language_model/1/checkpoint/*.safetensors", "!/tests/data/")


def sparse_bytes(root: Path = ROOT) -> int:
    """Return the size in bytes of a working tree with the patterns SPARSE."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout.split("\0")
    left_out = [
        name
        for name in names
        if name.startswith("tests/data/")
        or (name.startswith("model_repository/language_model/1/checkpoint/") and name.endswith(".safetensors"))
    ]
    kept = [root / name for name in names if name and name not in left_out]
    return sum(path.stat().st_size for path in kept if path.is_file())


def calls() -> list[plan.Call]:
    """Return the calls, the last of which runs the jobs."""
    size = sparse_bytes()
    call = plan.Call("fifteen minutes", BUNDLE, "benchmarks.gpu.quarter", QUARTER, True, size, limit_s=RUN_S)
    return plan.transfers(call)


def pack(words: Sequence[str]) -> int:
    """Pack the bundle unless `words` has --print, and print the calls with their sizes."""
    first, *_ = calls()
    if "--print" not in words:
        if not (ROOT / KERNELS).is_dir():
            subprocess.run(["scripts/cuda_without_gpu.sh", str(Path(KERNELS).parent)], cwd=ROOT, check=True)
        subprocess.run(first.preparation.split(), cwd=ROOT, check=True, env=os.environ)
    patterns = " ".join(f"'{pattern}'" for pattern in SPARSE)
    print(f"git sparse-checkout set --no-cone {patterns}    # {first.tree_bytes / 2**20:.1f} MiB")
    for call in calls():
        print("\n".join(call.lines), end="\n\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["pack"]:
        sys.exit(pack(sys.argv[2:]))
    arguments = parse(jobs=QUARTER, description=__doc__)
    sys.exit(main(arguments, QUARTER))
