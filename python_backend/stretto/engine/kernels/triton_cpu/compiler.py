"""The compiler half of the backend: it accepts the target `cpu` and refuses to compile."""

from types import ModuleType
from typing import NoReturn

from triton.backends import compiler


class InterpretedBackend(compiler.BaseBackend):
    """A compiler that has nothing to compile: on this target kernels are interpreted or replaced."""

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
        """There are none."""

    def get_module_map(self) -> dict[str, ModuleType]:
        return {}
