"""Modules that the engines' spare process imports in advance, and those that it leaves out.

An engine without compilation uses neither PyTorch's compilers nor transformers' model code nor vLLM's other servers.
They take half of the time of importing vLLM.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from stretto.config import EngineConfig
from stretto.engine.environment import is_cpu_build
from stretto.machine.deferred_imports import deferred, deferred_decorators, hidden

# Imported before a host is forked, because engines need them.
WARM = (
    "vllm.engine.arg_utils",
    "vllm.v1.engine.core",
    "vllm.v1.engine.utils",
    "vllm.v1.executor.uniproc_executor",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.layers.quantization.online.base",
    "stretto.engine.scheduling.scheduler",
    "stretto.engine.worker.model_state",
    "stretto.engine.models.backbones",
)
# Parsers of a model's reply and of calls of tools, with OpenAI's types and FastAPI, which no engine here uses.
DEFERRED = ("vllm.entrypoints.mcp.tool_server", "vllm.parser.engine.adapters")
# Further modules that are not needed on a CPU. Modules that engines need refer to them, but use them only in cases that
# do not occur here. On first use, such a module is imported after all.
DEFERRED_ON_CPU = (
    # compilers of models and kernels
    "torch._dynamo.symbolic_convert",
    "torch._inductor.runtime.triton_helpers",
    "torch.utils.cpp_extension",
    "vllm.compilation.passes.inductor_pass",
    "vllm.kernels.triton.activation",
    "vllm.model_executor.layers.quantization.compressed_tensors.utils",
    "vllm.models.deepseek_v4.common.eplb_util",
    # models, processors and generation of transformers
    "transformers.conversion_mapping",
    "transformers.generation.utils",
    "transformers.models.auto.image_processing_auto",
    "vllm.transformers_utils.processor",
    # downloads, recordings, videos, grammars and traces
    "aiohttp",
    "av",
    "cv2",
    "vllm.v1.structured_output.backend_guidance",
    "vllm.v1.structured_output.backend_xgrammar",
    "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.sdk.resources",
    "opentelemetry.sdk.trace",
    "opentelemetry.sdk.trace.export",
)
COMPILER = "torch._inductor"
# Decorators of `torch.compiler` that import the compiler; `torch.compile` does so, too.
MARKS_FOR_COMPILER = ("allow_in_graph", "assume_constant_result", "disable")


def has_preloaded(config: EngineConfig) -> bool:
    """Return True if an engine may be forked from the spare process.

    On a CPU, the spare has deferred the compiler, so it is only for models that run without compilation.
    """
    return not is_cpu_build() or config.engine_args.get("enforce_eager") is True


@contextmanager
def lean_imports() -> Iterator[None]:
    """Within the `with` block, import only modules that engines use; must be entered before vllm is imported."""
    with ExitStack() as block:
        if is_cpu_build():
            import torch

            with hidden(COMPILER):  # vLLM changes the compiler, if it can be imported
                import vllm  # noqa: F401
            block.enter_context(deferred(DEFERRED_ON_CPU))
            block.enter_context(deferred_decorators(torch, ("compile",), change_compiler))
            block.enter_context(deferred_decorators(torch.compiler, MARKS_FOR_COMPILER, change_compiler))
        block.enter_context(deferred(DEFERRED))
        yield


def change_compiler() -> None:
    """Let vLLM change PyTorch's compiler, as it would have done when vLLM was imported."""
    from vllm import env_override

    env_override._patch_inductor_fallback_allow_list()
