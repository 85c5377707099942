"""Print the command lines of all calls on a GPU host without a network.

    python -m benchmarks.gpu plan                 # the first call, then the calls for the jobs that it may not reach
    python -m benchmarks.gpu plan --out results   # only the jobs that have not passed in `results`

Such a host starts empty and is available for ten minutes per call. A call transfers the working tree and a bundle, and
runs one command on the host. At most eight files from the folder $OUT come back. Each call installs its own bundle. A
bundle that does not fit into one call with the present working tree is sent in several, which must reach the same host.
"""

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpu.bundling.__main__ import tree_bytes
from benchmarks.gpu.bundling.contents import BUNDLES, KERNELS
from benchmarks.gpu.jobs import IF_TIME_IS_LEFT, JOBS, SERVED, Job, Setup, groups, seconds_of

CALL_S = 600.0
SETUP_S = 70.0  # unpacking, imports, and a margin
LIMIT_S = CALL_S - SETUP_S
# folder for bundles (git ignores it); folder on the host
HERE = ".bundle"
THERE = "/tmp/stretto"


@dataclass(frozen=True)
class Call:
    """Call on the GPU host.

    Attributes:
        is_whole: True if these are all jobs of the module, so that the command need not list them.
        part: Number of the bundle part that is sent, counted from 1.
    """

    title: str
    bundle: str
    module: str
    jobs: Mapping[str, Job]
    is_whole: bool
    tree_bytes: int
    part: int = 1
    limit_s: float = LIMIT_S

    @property
    def folder(self) -> str:
        return f"{HERE}/{self.bundle}"

    @property
    def files(self) -> str:
        """Files that the call transfers although git ignores them."""
        return f"{self.folder}/manifest.json {self.folder}/part-{self.part:02}"

    @property
    def part_bytes(self) -> list[int]:
        return BUNDLES[self.bundle].part_bytes(self.tree_bytes)

    @property
    def is_last(self) -> bool:
        """True if this call completes the bundle on the host, so that the jobs can run."""
        return self.part == len(self.part_bytes)

    @property
    def preparation(self) -> str:
        """Command that packs the bundle on a machine with a network."""
        size, *others = self.part_bytes
        parts = (f"--part-mb {size / 1e6:.1f}",) if others else ()
        options = " ".join(BUNDLES[self.bundle].options + parts)
        return f"python -m benchmarks.gpu.bundling pack {options} --out {self.folder}"

    @property
    def command(self) -> str:
        """Command to run on the host, in the root of the working tree."""
        install = f"python3 -m benchmarks.gpu.bundling install --into {THERE}/{self.bundle} {self.files}"
        if not self.is_last:
            return install
        install += " --path-file" if "--triton" in BUNDLES[self.bundle].options else ""
        run = f'python3 -m {self.module} --out "$OUT" --limit-s {self.limit_s:.0f}'
        chosen = "" if self.is_whole else f" --jobs {' '.join(self.jobs)}"
        return f'line=$({install}) && eval "$line" && {run}{chosen}'

    @property
    def num_bytes(self) -> int:
        return self.tree_bytes + self.part_bytes[self.part - 1]

    @property
    def lines(self) -> Iterator[str]:
        """Shell commands of the call, with comments."""
        yield f"# {self.title}: {self.num_bytes / 2**20:.1f} MiB with the working tree, at most {CALL_S:.0f} s"
        if self.part == 1:
            yield "# before it, here:"
            if KERNELS in BUNDLES[self.bundle].options:
                yield f"scripts/cuda_without_gpu.sh {Path(KERNELS).parent}  # once: compiles the kernels"
            yield self.preparation
        yield f"# takes along: {self.files}; on the host:"
        yield self.command
        if not self.is_last:
            yield "# prints the missing parts and ends with status 3; the next call must reach the same host"
            return
        begin = 0.0
        for group in groups(self.jobs):
            end = begin + seconds_of(group)
            yield f"#   {begin:5.0f} s  {', '.join(group)}" + ("" if end <= self.limit_s else "  (if time is left)")
            begin = end


def calls(done: Iterable[str] | None = None, size: int | None = None) -> list[Call]:
    """Return the calls that run all jobs. `done` has those that have passed, and is None before the first call."""
    size = tree_bytes() if size is None else size
    first = [] if done is not None else [Call("call 1", "engine", "benchmarks.gpu", JOBS, True, size)]
    done = set(JOBS) - set(IF_TIME_IS_LEFT) if done is None else set(done)
    parts = divided(name for name in JOBS if name not in done)
    others = [
        Call(f"call 2, part {number}", "engine", "benchmarks.gpu", group, False, size)
        for number, group in enumerate(parts, 1)
    ]
    others += [
        Call(f"the server, part {number}", "served", "benchmarks.gpu.served", group, False, size)
        for number, group in enumerate(divided((name for name in SERVED if name not in done), SERVED), 1)
    ]
    return [transfer for call in first + others for transfer in transfers(call)]


def transfers(call: Call) -> list[Call]:
    """Return one call for each part of the bundle, the last of which runs the jobs."""
    number = len(call.part_bytes)
    if number == 1:
        return [call]
    return [
        replace(call, title=f"{call.title}, transfer {number_of_part}", part=number_of_part)
        for number_of_part in range(1, number + 1)
    ]


def divided(names: Iterable[str], jobs: Mapping[str, Job] = JOBS) -> list[dict[str, Job]]:
    """Divide the jobs `names` in order into calls by time limit, each with the jobs whose results its jobs read."""
    parts: list[dict[str, Job]] = [{}]
    for name in names:
        wanted = {wanted_name: jobs[wanted_name] for wanted_name in (*jobs[name].reads, name)}
        if seconds_of(parts[-1] | wanted) > LIMIT_S:
            parts.append({})
        parts[-1] |= wanted
    return [group for group in parts if group]


def passed(results: Path) -> set[str]:
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    return {line["job"] for line in lines if line.get("status") == "passed"}


def parse(line: Iterable[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder with the results of earlier calls")
    return parser.parse_args(None if line is None else list(line))


def main(arguments: argparse.Namespace) -> int:
    done = None if arguments.out is None else passed(Setup("cuda", arguments.out).results)
    for call in calls(done):
        print("\n".join(call.lines), end="\n\n")
    return 0
