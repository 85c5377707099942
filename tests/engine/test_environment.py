"""Environment settings, read in a separate process as in the engine."""

import os
import subprocess
import sys

import pytest

from stretto.engine import environment
from tests.patience import PATIENCE_S

PREPARE = "from stretto.engine.environment import prepare_environment; prepare_environment()"


REQUIRED = environment.REQUIRED | environment.REQUIRED_ON_CPU
DEFAULTS = environment.DEFAULTS | environment.DEFAULTS_ON_CPU


def run(program: str, **variables: str) -> subprocess.CompletedProcess[str]:
    names = {*REQUIRED, *DEFAULTS}
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-c", program], env=inherited | variables, capture_output=True, text=True, timeout=PATIENCE_S
    )


def test_environment_is_complete_with_utf8_locale():
    names = sorted({*REQUIRED, *DEFAULTS, "LC_ALL"})
    show = f"print([os.environ[name] for name in {names}], locale.setlocale(locale.LC_CTYPE))"
    shown = run(f"{PREPARE}; import locale, os; {show}", LC_ALL="C").stdout
    expected = REQUIRED | DEFAULTS | {"LC_ALL": "C.UTF-8"}
    assert shown.split("]")[0] + "]" == str([expected[name] for name in names])
    assert shown.strip().endswith("C.UTF-8")


def test_user_environment_is_kept_unless_the_engine_cannot_start():
    shown = run(
        f"{PREPARE}; import os; print(os.environ['OMP_NUM_THREADS'], os.environ['TRITON_INTERPRET'])",
        OMP_NUM_THREADS="3",
        TRITON_INTERPRET="0",
    ).stdout
    assert shown.split() == ["3", "1"]


def test_late_environment_setup_error_names_missing_variables(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", sys)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match=r"imported before prepare_environment.*TRITON_INTERPRET=1"):
        environment.prepare_environment()


GPU_BUILD = "from stretto.engine import environment; environment.version = lambda name: '0.32.0'; "


def test_gpu_build_sets_only_gpu_environment_variables():
    names = sorted({*REQUIRED, *DEFAULTS, "LC_ALL"})
    show = f"import os; print([name for name in {names} if name in os.environ])"
    shown = run(f"{GPU_BUILD}environment.prepare_environment(); {show}").stdout
    assert shown.strip() == str(sorted({*environment.REQUIRED, *environment.DEFAULTS, "LC_ALL"}))


def test_gpu_build_refuses_to_start_with_triton_interpret():
    done = run(f"{GPU_BUILD}environment.prepare_environment()", TRITON_INTERPRET="1")
    assert "TRITON_INTERPRET is set" in done.stderr


def test_batch_invariance_requires_gpu_build_and_unimported_vllm():
    ask = "environment.require_batch_invariance(); import os; print(os.environ['VLLM_BATCH_INVARIANT'])"
    assert run(GPU_BUILD + ask).stdout.split() == ["1"]
    assert "vllm was imported before" in run(f"{GPU_BUILD}import sys; sys.modules['vllm'] = sys; {ask}").stderr
    refused = run(f"from stretto.engine import environment; {ask}").stderr
    assert "ValueError: batch_invariant requires a GPU" in refused
