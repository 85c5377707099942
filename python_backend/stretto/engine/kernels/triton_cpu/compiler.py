"""Compiler for the CPU backend, which accepts the target `cpu` but cannot compile anything."""

from types import ModuleType
from typing import NoReturn

from triton.backends import compiler


class InterpretedBackend(compiler.BaseBackend):
    """Compiler without stages, because all kernels are interpreted or replaced on a CPU."""

    @staticmethod
    def supports_target(target: compiler.GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return "interpreted"

    def parse_options(self, options: dict[str, object]) -> NoReturn:
        raise NotImplementedError("Triton kernels are not compiled without a GPU: set TRITON_INTERPRET=1")

    def add_stages(self, stages: dict[str, object], options: object, language: compiler.Language) -> NoReturn:
        raise NotImplementedError("Triton kernels are not compiled without a GPU: set TRITON_INTERPRET=1")

    def load_dialects(self, context: object) -> None:
        """Do nothing: there are no dialects."""

    def get_module_map(self) -> dict[str, ModuleType]:
        return {}
