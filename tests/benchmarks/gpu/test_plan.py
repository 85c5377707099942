"""The printed commands parse, fit the limits of a call, and run every job, the most informative ones first."""

import shlex
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu import plan
from benchmarks.gpu.__main__ import parse
from benchmarks.gpu.bundling.__main__ import parser, tree_bytes
from benchmarks.gpu.bundling.contents import BUNDLES, CALL_BYTES
from benchmarks.gpu.jobs import IF_TIME_IS_LEFT, JOBS, SERVED, Job, seconds_of

ROOT = Path(__file__).parents[3]
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


def test_large_bundle_is_transferred_over_several_calls() -> None:
    size = CALL_BYTES - BUNDLES["served"].num_bytes * 6 // 10
    parts = [call for call in plan.calls(size=size) if call.title.startswith("the server, part 1,")]
    assert [call.part for call in parts] == [1, 2]
    assert [call.is_last for call in parts] == [False, True]
    assert sum(parts[0].part_bytes) == BUNDLES["served"].num_bytes
    assert "same host" in "\n".join(parts[0].lines)


def test_parts_shrink_as_the_working_tree_grows() -> None:
    size = CALL_BYTES - BUNDLES["engine"].num_bytes // 2 - 300_000  # room for a little more than half of the bundle
    planned = plan.calls(size=size)
    first, second, *_ = planned
    assert [each.title for each in (first, second)] == ["call 1, transfer 1", "call 1, transfer 2"]
    assert named_jobs(first) == []
    assert named_jobs(second) == list(JOBS)
    assert max(call.num_bytes for call in planned) <= CALL_BYTES
    assert first.part_bytes[0] == pytest.approx(BUNDLES["engine"].num_bytes / 2, rel=0.02)
    assert f"--part-mb {first.part_bytes[0] / 1e6:.1f} " in first.preparation
    with pytest.raises(ValueError, match="expected a working tree of less than"):
        plan.calls(size=CALL_BYTES)


def test_most_informative_jobs_run_first() -> None:
    place = {name: index for index, name in enumerate(JOBS)}
    assert next(iter(JOBS)) == "host", "it explains most failures of later jobs"
    assert place["parity_graphs"] < min(place[name] for name in JOBS if name.startswith(("ours_", "decoder_")))
    assert place["ours_qwen3_tts"] < place["side_by_side"], "which needs the compiled model of the former"
    assert place["side_by_side"] < place["memcheck"], "which delays the first figures"
    assert all(place[name] < place[IF_TIME_IS_LEFT[0]] for name in JOBS if name not in IF_TIME_IS_LEFT)
    assert all(place[earlier] < place[name] for name, job in JOBS.items() for earlier in job.reads)


@pytest.mark.parametrize("call", plan.calls(), ids=lambda call: call.title)
def test_planned_call_fits_the_host_limits(call: plan.Call) -> None:
    assert call.num_bytes <= HOST_BYTES
    assert len(call.command) <= LONGEST_COMMAND
    if not call.is_whole:
        assert seconds_of(call.jobs) <= plan.LIMIT_S


def test_planned_calls_skip_passed_jobs_and_repeat_dependencies() -> None:
    done = {*JOBS, *SERVED} - {"stock_8b", "waits"}
    (call,) = plan.calls(done, size=CALL_BYTES - BUNDLES["engine"].num_bytes - 1_000_000)
    assert named_jobs(call) == ["waits", "ours_8b", "stock_8b"]
    (*_, call) = plan.calls({*JOBS, *SERVED} - {"served_mps"})
    assert named_jobs(call) == ["served_mps"]
    assert plan.calls({*JOBS, *SERVED}) == []


def test_jobs_exceeding_one_call_are_split_over_several() -> None:
    half = plan.LIMIT_S / 2
    jobs = {"a": Job("", half), "b": Job("", half), "c": Job("", 1), "d": Job("", half, reads=("a",))}
    assert [list(part) for part in plan.divided("abcd", jobs)] == [["a", "b"], ["c"], ["a", "d"]]


def test_plan_omits_jobs_that_have_passed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = {*JOBS, *SERVED} - {"waits"}
    lines = [f'{{"job": "{name}", "status": "passed"}}' for name in names]
    (tmp_path / "all.jsonl").write_text("\n".join([*lines, '{"job": "waits", "ok": false}', ""]))
    assert plan.main(plan.parse(["--out", str(tmp_path)])) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if line.startswith("#  ")] == ["#       0 s  waits"]
    assert any(line.endswith("--jobs waits") for line in printed)


def test_tree_size_counts_unignored_files_without_bundles(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    before = tree_bytes(tmp_path)
    (tmp_path / "new").write_bytes(bytes(1000))
    (tmp_path / plan.HERE / "engine").mkdir(parents=True)
    (tmp_path / plan.HERE / "engine/part-01").write_bytes(bytes(5000))
    assert tree_bytes(tmp_path) == before + 1000
    assert parser().parse_args(["pack", "--out", "x"]).wheelhouse.parts[0] == plan.HERE


def test_planned_calls_stay_below_the_transfer_limit() -> None:
    assert max(call.num_bytes for call in plan.calls()) <= CALL_BYTES
