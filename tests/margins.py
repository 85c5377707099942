"""Search for comparisons of numbers whose tolerance another make of processor may exceed.

    python -m tests.margins tests/codecs [pytest's arguments]

It runs the tests once for each of `SETTINGS`, by which libraries choose their instructions as on other processors. They
round differently. None of them is exactly that of another make, so a comparison must have a margin.

The ratio of a comparison is the difference over the tolerance; it passes up to 1. Its movement is the largest change of
the ratio between two settings, and its margin is (1 - largest ratio) / movement. A test with a margin below
LEAST_MARGIN is thin. Movement is measured for each number of the arrays given to `assert_close`, `assert_allclose` and
`allclose`. Of `assert error < tolerance` only the error is known, usually the largest of many. It hardly moves,
although every number does: if it moves by more than MOVING of itself, all of it counts as movement.

vLLM chooses its library by the processor, not by these settings. With them, tests use its library for AVX2. Its
kernels for AMX abort tests in bfloat16 and float8, because torch does not enable AMX; leave such tests out.

The command fails if a test is thin, or fails itself with one of the settings. For exact comparisons and ones of one
process with itself, there is nothing to do: they either pass with each setting or not.
"""

import ast
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SETTINGS = {
    "this processor": {},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
    "SSE": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Nehalem",
    },
}
LEAST_MARGIN = 10
MOVING = 0.01
MAX_NUMBERS = 1 << 14  # stored numbers of an array
FILE = "STRETTO_MARGINS"  # environment variable: where a run stores its ratios

Ratios = dict[tuple[str, str], list[np.ndarray]]  # by test and comparison, one array for each time it was made


class Recorder:
    """Pytest plug-in that stores the signed ratios of all comparisons in a file."""

    def __init__(self, path: Path) -> None:
        self._path, self._test = path, ""
        self._found: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)

    def record(self, comparison: str, ratios: np.ndarray) -> None:
        """Store at most MAX_NUMBERS ratios of a test's comparison, the largest among them."""
        flat = np.asarray(ratios, np.float64).reshape(-1)
        if flat.size and self._test:  # modules compare, too, when they are imported
            self._found[self._test, comparison].append(flat[:: -(-flat.size // MAX_NUMBERS)].astype(np.float32))

    def pytest_collection(self) -> None:
        """Replace the functions that compare arrays, before tests import them."""
        import torch

        def default_tolerances(actual: Any, expected: Any) -> tuple[float, float]:
            return torch.testing._comparison.default_tolerances(actual, expected)

        for module, name, tolerances in (
            (torch.testing, "assert_close", default_tolerances),
            (torch, "allclose", lambda actual, expected: (1e-5, 1e-8)),
            (np.testing, "assert_allclose", lambda actual, expected: (1e-7, 0.0)),
            (np, "allclose", lambda actual, expected: (1e-5, 1e-8)),
        ):
            setattr(module, name, self._recorded(getattr(module, name), tolerances))

    def _recorded(self, compare: Callable[..., Any], tolerances: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(actual: Any, expected: Any, *args: Any, **options: Any) -> Any:
            caller = sys._getframe(1)
            place = f"{Path(caller.f_code.co_filename).name}:{caller.f_lineno}"
            for one, other in pairs(actual, expected):
                known = dict(zip(("rtol", "atol"), tolerances(one, other), strict=True))
                known |= dict(zip(("rtol", "atol"), args, strict=False))
                known |= {name: options[name] for name in known if options.get(name) is not None}
                self.record(place, ratios(numbers(one), numbers(other), **known))
            return compare(actual, expected, *args, **options)

        return recorded

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Remember the test that runs."""
        self._test = nodeid

    def pytest_assertion_pass(self, orig: str, expl: str) -> None:
        """Store the ratio of an assertion that one number is below another, or nearly equals it."""
        ratio = ratio_of(expl.partition("\n")[0])
        if ratio is not None:
            self.record(orig.partition("\n")[0], np.array([ratio]))

    def pytest_sessionfinish(self) -> None:
        """Write the file."""
        self._path.write_bytes(pickle.dumps(dict(self._found)))


def pairs(actual: Any, expected: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the pairs of arrays or numbers in two values of the same structure."""
    if isinstance(actual, dict):
        for name, value in actual.items():
            if name in expected:
                yield from pairs(value, expected[name])
    elif isinstance(actual, list | tuple) and isinstance(expected, list | tuple) and not np.isscalar(actual[0]):
        for one, other in zip(actual, expected, strict=False):
            yield from pairs(one, other)
    else:
        yield actual, expected


def numbers(values: Any) -> np.ndarray:
    """Return an array or a tensor in float64."""
    return np.asarray(values.detach().cpu().double() if hasattr(values, "detach") else values, np.float64)


def ratios(actual: np.ndarray, expected: np.ndarray, rtol: float, atol: float) -> np.ndarray:
    """Return the signed difference over the tolerance for each number; 0 where both are equal."""
    with np.errstate(all="ignore"):
        found = (actual - expected) / (atol + rtol * np.abs(expected))
    return np.where(actual == expected, 0.0, found)


def ratio_of(comparison: str) -> float | None:
    """Return the ratio of an assertion that passed, in pytest's words, or None if it compares no positive floats.

    `0.25 < 1.0` has the ratio 0.25, and so have `1.0 >= 0.25` and `1.25 == 1.0 ± 1.0`.
    """
    text = re.sub(r"(?:tensor|array)\(([^()]*?)(?:, dtype=[\w.]+)?\)", r"\1", comparison)
    near = re.fullmatch(r"(\S+) == (\S+) ± (\S+)", text)
    try:
        if near:
            one, other, tolerance = map(float, near.groups())
            return abs(one - other) / tolerance
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    if not isinstance(tree, ast.Compare) or not isinstance(tree.ops[-1], ast.Lt | ast.LtE | ast.Gt | ast.GtE):
        return None
    sides = value_of(tree.comparators[-2] if len(tree.ops) > 1 else tree.left), value_of(tree.comparators[-1])
    low, high = sides if isinstance(tree.ops[-1], ast.Lt | ast.LtE) else reversed(sides)
    if low is None or high is None or (isinstance(low, int) and isinstance(high, int)) or low < 0 or high <= 0:
        return None
    return low / high


def value_of(node: ast.expr) -> float | None:
    """Return the value of sums and products of numbers; None for other expressions."""
    kinds = ast.Expression, ast.BinOp, ast.UnaryOp, ast.Constant, ast.operator, ast.unaryop
    if not all(isinstance(each, kinds) for each in ast.walk(node)):
        return None
    value = eval(compile(ast.Expression(node), "<comparison>", "eval"), {})
    return value if isinstance(value, int | float) else None


def margin_of(made: list[np.ndarray]) -> tuple[float, list[float]]:
    """Return the margin of a comparison, given its ratios in each setting, and the largest ratio in each."""
    levels = [float(np.abs(each).max()) for each in made]
    if len(made[0]) > 1:
        movement = float(np.max(made, 0).__sub__(np.min(made, 0)).max())
    else:
        movement = max(levels) - min(levels)
        movement = max(levels) if movement > MOVING * max(levels) else movement
    return ((1 - max(levels)) / movement if movement else np.inf), levels


def thin(runs: list[Ratios]) -> list[str]:
    """Return a line for each comparison of a test with a thin margin, given the ratios of each setting."""
    lines = []
    for test, comparison in runs[0]:
        all_made = [run.get((test, comparison), []) for run in runs]
        found = [
            margin_of(list(made)) for made in zip(*all_made, strict=False) if len({each.size for each in made}) == 1
        ]
        margin, levels = min(found, default=(np.inf, []))
        if margin < LEAST_MARGIN:
            each = " ".join(f"{level:.3g}" for level in levels)
            lines.append(f"{test}: {comparison}: margin {margin:.2g}, ratios {each}")
    return lines


def main(arguments: list[str]) -> int:
    """Run the tests with each setting and print the thin ones.

    Args:
        arguments: Arguments for pytest.

    Returns:
        The exit status: 1 if a test fails or is thin.
    """
    runs, failed = list[Ratios](), list[str]()
    with tempfile.TemporaryDirectory() as folder:
        for name, setting in SETTINGS.items():
            print(f"margins: {name} {setting}", flush=True)
            path = Path(folder) / name.replace(" ", "_")
            # Bytecode of its own, because tests are compiled in another way for `pytest_assertion_pass`.
            more = {FILE: str(path), "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
            options = ["-p", "tests.margins", "-p", "no:cacheprovider", "-o", "enable_assertion_pass_hook=true"]
            command = [sys.executable, "-m", "pytest", *options, *arguments]
            if subprocess.run(command, env=os.environ | setting | more).returncode:
                failed.append(name)
            if path.exists():  # otherwise the process was aborted, so the others are compared
                runs.append(pickle.loads(path.read_bytes()))
    lines = thin(runs) if runs else []
    print(f"margins: {sum(map(len, runs[0].values())) if runs else 0} comparisons", *lines, sep="\n")
    if failed:
        print("margins: tests fail with", ", ".join(failed))
    return 1 if lines or failed else 0


def use_library_for_avx2() -> None:
    """Make vLLM load its library for AVX2 in this process."""
    import torch

    for name in ("_is_avx512_supported", "_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        setattr(torch.cpu, name, lambda: False)


def pytest_configure(config: pytest.Config) -> None:
    """Record the ratios of a run of `main`, in helpers of tests, too."""
    if SETTINGS["AVX2"].keys() & os.environ.keys():
        use_library_for_avx2()
    pytest.register_assert_rewrite("tests")
    config.pluginmanager.register(Recorder(Path(os.environ[FILE])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
