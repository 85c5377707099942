"""Entry point of the vLLM plugin (`vllm.general_plugins`): vLLM calls `register` in each of its processes."""

import gc
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
ARCHITECTURES = {
    "StrettoQwen2ForCausalLM": "stretto.engine.models.backbones:StrettoQwen2ForCausalLM",
    "StrettoQwen3ForCausalLM": "stretto.engine.models.backbones:StrettoQwen3ForCausalLM",
    "StrettoQwen3MoeForCausalLM": "stretto.engine.models.backbones:StrettoQwen3MoeForCausalLM",
    "StrettoLlamaForCausalLM": "stretto.engine.models.backbones:StrettoLlamaForCausalLM",
}


def register() -> None:
    """Register the model classes with vLLM and, on a CPU, replace vLLM's Triton kernels with CPU kernels."""
    from vllm import ModelRegistry
    from vllm.model_executor.models import registry
    from vllm.platforms import current_platform

    from stretto.family.plugin import plugins

    # vLLM collects garbage eight times during start-up, each time over every imported module.
    gc.freeze()
    supported = ModelRegistry.get_supported_archs()
    for classes in (ARCHITECTURES, *(plugin.architectures for plugin in plugins())):
        for name, path in classes.items():
            if name not in supported:
                ModelRegistry.register_model(name, path)
    if current_platform.is_cpu():
        from stretto.cpu_backend import install

        install()
        registry._run_in_subprocess = _run_here


def _run_here(fn: Callable[[], T]) -> T:
    """Call a function that inspects a model class in this process, which saves imports.

    vLLM uses another process, so that none initialises CUDA by importing a class. That process imports vLLM again,
    which takes 8 s of processor time for each class that vLLM's cache of such results does not contain.
    """
    return fn()
