"""Triton finds the backend through its entry point, as the only active one."""

import subprocess
import sys

import pytest
import torch
from triton.backends import backends
from triton.runtime import driver

from stretto.engine.kernels.triton_cpu.compiler import InterpretedBackend
from stretto.engine.kernels.triton_cpu.driver import CpuDriver
from tests.patience import PATIENCE_S

without_gpu = pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")


def test_triton_discovers_the_backend():
    assert backends["cpu"].driver is CpuDriver
    assert backends["cpu"].compiler is InterpretedBackend


@without_gpu
def test_cpu_driver_is_active_without_a_gpu():
    assert CpuDriver.is_active()
    assert driver.active.get_active_torch_device() == torch.device("cpu")


def test_cpu_driver_is_not_active_with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not CpuDriver.is_active()


def test_interpreted_backend_does_not_compile():
    backend = InterpretedBackend(CpuDriver().get_current_target())
    with pytest.raises(NotImplementedError, match="TRITON_INTERPRET"):
        backend.parse_options({})


def test_importing_the_backend_imports_neither_torch_nor_vllm():
    program = (
        "import sys; import stretto.engine.kernels.triton_cpu; import stretto.engine; "
        "print({'torch', 'vllm'} & set(sys.modules))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert shown.stdout.strip() == "set()"
