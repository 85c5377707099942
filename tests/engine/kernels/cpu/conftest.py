"""Run a Triton kernel in the interpreter and its CPU twin on equal inputs, and compare all that they write."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from vllm.triton_utils import dispatcher

from stretto import cpu_backend as cpu_kernels

Compare = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def same_as_kernel() -> Compare:
    """Return the function `same_as_kernel(name, grid, *arguments, **constants)`, which returns the twin's results."""
    cpu_kernels.install()

    def compare(name: str, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> list[Any]:
        interpreted, twin = dispatcher._registry[f"{cpu_kernels.RUNNER}.{name}"]
        expected, got = copy.deepcopy(arguments), copy.deepcopy(arguments)
        interpreted[grid](*expected, **constants)
        twin(*got, **constants)
        for index, (one, other) in enumerate(zip(expected, got, strict=True)):
            if isinstance(one, torch.Tensor):
                torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5, equal_nan=True, msg=f"argument {index}")
        return list(got)

    return compare
