"""The engines' spare process defers modules of vLLM, and each of them works when an engine uses it."""

import json
import subprocess
import sys
from typing import Any

import pytest

from stretto.engine.environment import is_cpu_build
from stretto.engine.preloading import DEFERRED, DEFERRED_ON_CPU

pytestmark = [
    pytest.mark.engine,
    pytest.mark.nightly,  # the table changes with releases of vLLM; engines of test_host.py use it by day
    pytest.mark.skipif(not is_cpu_build(), reason="on a GPU, the compiler is not deferred"),
]

PROGRAM = """
import importlib, json, sys
from stretto.engine.environment import prepare_environment
from stretto.engine.preloading import WARM, lean_imports
from stretto.machine.deferred_imports import DeferredObject, _DeferredModule

prepare_environment()
with lean_imports():
    for name in WARM:
        importlib.import_module(name)
    import torch

    @torch.compile(backend="eager")
    def twice(numbers):
        return 2 * numbers

    @torch.compiler.disable
    def thrice(numbers):
        return 3 * numbers

imported = set(sys.modules)
stand_ins = [
    (name, value)
    for name, module in list(sys.modules.items())
    for value in list(vars(module).values())
    if type(value) in (DeferredObject, _DeferredModule)
]
named = {
    value._module if type(value) is DeferredObject else value.__name__: name for name, value in stand_ins
}
wrong = []
for name, value in stand_ins:
    if type(value) is DeferredObject:
        real = getattr(importlib.import_module(value._module), value._name)
        if value._object() is not real:
            wrong.append((name, value._module, value._name))
    else:
        real = importlib.import_module(value.__name__)
        public = [word for word in dir(real) if not word.startswith("_")]
        if any(getattr(value, word) is not getattr(real, word) for word in public):
            wrong.append((name, value.__name__, ""))
from torch._inductor import lowering

was_changed = hasattr(lowering.FALLBACK_ALLOW_LIST, "_vllm_patched")
results = [twice(torch.ones(2)).tolist(), thrice(torch.ones(2)).tolist()]
print(json.dumps({
    "named": named,
    "wrong": wrong,
    "imported": sorted(imported),
    "was_changed": was_changed,
    "is_changed": hasattr(lowering.FALLBACK_ALLOW_LIST, "_vllm_patched"),
    "results": results,
}))
"""


@pytest.fixture(scope="module")
def outcome() -> dict[str, Any]:
    """Imports of a process like the spare, which then uses all that it has deferred."""
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_each_deferred_module_is_named_by_an_imported_one(outcome: dict[str, Any]) -> None:
    """Another entry of the table would have no effect."""
    assert outcome["named"].keys() == {*DEFERRED, *DEFERRED_ON_CPU}


def test_each_stand_in_does_what_its_object_does(outcome: dict[str, Any]) -> None:
    assert outcome["wrong"] == []


def test_deferred_modules_are_not_imported(outcome: dict[str, Any]) -> None:
    assert not {*DEFERRED, *DEFERRED_ON_CPU} & {*outcome["imported"]}


def test_decorated_functions_are_compiled_when_they_are_called(outcome: dict[str, Any]) -> None:
    assert outcome["results"] == [[2.0, 2.0], [3.0, 3.0]]
    assert (outcome["was_changed"], outcome["is_changed"]) == (False, True)
