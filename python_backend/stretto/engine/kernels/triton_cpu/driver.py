"""Driver for the CPU backend, which registers the host as a Triton device.

Triton always imports this file, so torch is imported only on demand.
"""

from typing import TYPE_CHECKING, NoReturn

from triton.backends import driver
from triton.backends.compiler import GPUTarget

if TYPE_CHECKING:
    import torch


class CpuDriver(driver.DriverBase):
    """Driver for the host as a Triton device. It is active only if torch finds no accelerator."""

    @classmethod
    def is_active(cls) -> bool:
        import torch

        return not torch.accelerator.is_available()

    def map_python_to_cpp_type(self, ty: str) -> NoReturn:
        raise NotImplementedError("Triton kernels are not launched natively without a GPU")

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cpu", 0, 1)

    def get_active_torch_device(self) -> "torch.device":
        import torch

        return torch.device("cpu")

    def get_benchmarker(self) -> NoReturn:
        raise NotImplementedError("interpreted kernels cannot be benchmarked")
