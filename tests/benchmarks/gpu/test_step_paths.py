"""The job that compares step kernels with the array path, run with a fake clock and without a GPU."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import step_paths
from benchmarks.gpu.jobs import Setup
from benchmarks.gpu.step_paths import CASES, LENGTH, SHARE, Recorded, verdict
from tests.engine.kernels.gpu.operators import count_operators
from tests.engine.worker import walks  # noqa: F401  (events of the CPU in the place of a GPU's)
from tests.tiers import by_night

pytestmark = pytest.mark.slow
SETUP = Setup("cpu", Path())
FAMILIES = ["bagpiper", "opuslm", "qwen3_tts"]


class FakeDevice:
    """Fake device that replays by running the work again. The kernels take 1 ms, the array path `array_ms`."""

    def __init__(self, array_ms: float):
        self._ms = {"kernels": 1.0, "array": array_ms, "compiled": array_ms - 0.5, "backbone": 3.0, "depth": 1.0}

    def record(self, name: str, work: Callable[[], object]) -> Recorded:
        return Recorded(work, len(name.split()[0]))

    def ms(self, name: str, replay: Callable[[], object]) -> float:
        return self._ms[name.split()[0]]


@pytest.mark.parametrize(("array_ms", "kept"), by_night((1.5, "replace"), (50.0, "keep")))
def test_step_path_job_compares_both_paths_and_gives_a_verdict(
    array_ms: float, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_paths, "CASES", {"bagpiper": "8b"})
    array, first, compiled, last = step_paths.run(SETUP, FakeDevice(array_ms))
    assert (array["different"], compiled["different"]) == (0, 0)
    assert array["ids"] > 100
    assert (array["kernels_launches"], array["array_launches"], compiled["compiled_launches"]) == (7, 5, 8)
    num_layers = step_paths._backbone(SETUP, "bagpiper")["num_hidden_layers"]
    assert array["step_ms"] == 1 + 3 * num_layers / 2
    assert array["gain"] == round((array_ms - 1) / array["step_ms"], 4)
    assert first["verdict"].startswith("keep" if array["gain"] > SHARE else "replace")
    assert last["verdict"].startswith(kept)
    assert (last["family"], last["rows"], last["largest_gain"]) == ("bagpiper", 2, compiled["gain"])


def line(family: str, rows: int, gain: float, ok: bool = True) -> dict[str, Any]:
    return {"family": family, "rows": rows, "ok": ok} | ({"gain": gain} if ok else {})


def test_step_kernels_are_kept_only_for_a_large_enough_gain() -> None:
    lines = [line("a", 1, 0.02), line("b", 64, SHARE)]
    assert verdict(lines)["verdict"].startswith("replace")
    kept = verdict([*lines, line("b", 1, SHARE + 0.01)])
    assert (kept["verdict"], kept["family"], kept["rows"]) == ("keep the step kernels", "b", 1)
    assert verdict([*lines, line("b", 1, 0.5), line("b", 1, 0.05)])["verdict"].startswith("replace"), "the faster path"


def test_no_verdict_while_a_case_has_no_equal_path() -> None:
    lines = [line("a", 1, 0.02), line("b", 64, 0, ok=False)]
    assert verdict(lines)["verdict"] == "none: the paths differ or could not run for b with 64 rows"
    assert verdict([*lines, line("b", 64, 0.01)])["verdict"].startswith("replace"), "another path is equal"
    assert verdict([])["verdict"].startswith("none")


def paths_of(name: str, compiler: Callable[..., Any] | None) -> tuple[step_paths.Case, dict[str, step_paths.Path]]:
    case = step_paths.case_of(SETUP, name, 4)
    readout = step_paths.readout_of(case.rules, case.width, case.device, case.dtype)
    return case, {"one": case.arrays(readout), "other": case.arrays(readout, compiler)}


@pytest.mark.parametrize("name", by_night(*FAMILIES))
def test_torch_compile_does_not_change_the_array_path_rows(name: str) -> None:
    with step_paths.opaque_draws(), torch.no_grad():
        case, paths = paths_of(name, step_paths._compiler(SETUP))
        recorded = {each: Recorded(path.launch, None) for each, path in paths.items()}
        different, number = step_paths.differences(case, paths, recorded)
    assert different == 0
    assert number > 200


def test_stale_graph_replay_is_detected_as_different() -> None:
    with step_paths.opaque_draws(), torch.no_grad():
        case, paths = paths_of("bagpiper", None)
        for path in paths.values():
            path.lengths.fill_(LENGTH // 2)
            path.launch()
        recorded = {"one": Recorded(paths["one"].launch, None), "other": Recorded(lambda: None, None)}
        different, number = step_paths.differences(case, paths, recorded)
    assert different > step_paths.DIFFERENT * number


@pytest.mark.parametrize("name", CASES)
def test_array_path_has_no_device_syncs_or_host_copies(name: str) -> None:
    """The path runs on meta tensors of the published widths."""
    assert count_operators(name, "meta") > 50
