"""The printed commands parse, fit the limits of a call, and run every job, the most informative ones first."""

import shlex

import pytest

from benchmarks.gpu import plan
from benchmarks.gpu.__main__ import parse
from benchmarks.gpu.bundling.__main__ import parser
from benchmarks.gpu.bundling.contents import CALL_BYTES
from benchmarks.gpu.jobs import IF_TIME_IS_LEFT, JOBS, SERVED, seconds_of

HOST_BYTES, HOST_S, LONGEST_COMMAND = 64 << 20, 600, 2000


def words_of(command: str) -> list[list[str]]:
    """Return the arguments of each `python -m` in a command."""
    words = shlex.split(command.replace("line=$(", "").replace(") && eval", " && eval"))
    ends = [*(index for index, word in enumerate(words) if word == "&&"), len(words)]
    starts = [0, *(end + 1 for end in ends)]
    parts = [words[start:end] for start, end in zip(starts, ends, strict=False)]
    return [part[1:] for part in parts if part[0].startswith("python")]


def named_jobs(call: plan.Call) -> list[str]:
    """Parse a call's command with the real parsers and return the jobs that it runs."""
    ((flag, module, *packing),) = words_of(call.preparation)
    assert (flag, module) == ("-m", "benchmarks.gpu.bundling")
    packed = parser().parse_args(packing)
    if packed.kernels and call.part == 1:
        assert f"scripts/cuda_without_gpu.sh {packed.kernels.parent} " in "\n".join(call.lines)
    (_, _, *installing), *running = words_of(call.command)
    installed = parser().parse_args(installing)
    assert packed.command == "pack"
    assert installed.command == "install"
    assert installed.parts == [packed.out / "manifest.json", packed.out / f"part-{call.part:02}"]
    if not call.is_last:
        assert not running
        return []
    ((_, run, *options),) = running
    assert run == call.module
    arguments = parse(options, jobs=SERVED if run == "benchmarks.gpu.served" else JOBS)
    assert str(arguments.out) == "$OUT"
    assert arguments.device == "cuda"
    assert arguments.limit_s + plan.SETUP_S <= HOST_S
    return arguments.jobs


def test_first_call_runs_jobs_in_table_order() -> None:
    first, *others = [call for call in plan.calls() if call.is_last]
    assert named_jobs(first) == list(JOBS)
    named = dict.fromkeys(
        name for call in others for name in named_jobs(call)
    )  # a call repeats jobs that its jobs read
    assert [name for name in named if name in IF_TIME_IS_LEFT] == list(IF_TIME_IS_LEFT)
    assert [name for name in named if name in SERVED] == list(SERVED), "each fits into its call"


@pytest.mark.parametrize("call", plan.calls(), ids=lambda call: call.title)
def test_planned_call_fits_the_host_limits(call: plan.Call) -> None:
    assert call.num_bytes <= CALL_BYTES <= HOST_BYTES
    assert len(call.command) <= LONGEST_COMMAND
    if not call.is_whole:
        assert seconds_of(call.jobs) <= plan.LIMIT_S
