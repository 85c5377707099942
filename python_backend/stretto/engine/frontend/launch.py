"""How vLLM is started: environment, then configuration. vllm is imported only once the environment is right."""

import os
from typing import TYPE_CHECKING

from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment, require_batch_invariance

if TYPE_CHECKING:
    from vllm.config import VllmConfig

SCHEDULER = "stretto.engine.scheduling.scheduler.SpeechScheduler"
PROCESS_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
ASYNC_SCHEDULER = "stretto.engine.scheduling.scheduler.SpeechAsyncScheduler"


def vllm_config(config: EngineConfig) -> "VllmConfig":
    """vLLM's configuration for `config`, with what the plugin decides; ValueError where it cannot work."""
    prepare_environment()
    if config.batch_invariant:
        require_batch_invariance()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    arguments = dict(config.engine_args)
    if config.kv_share:
        arguments["additional_config"] = arguments.get("additional_config", {}) | {"kv_share": config.kv_share}
    if current_platform.is_cpu():
        from stretto.engine.kernels.cpu.norms import IR_OP_PRIORITY

        arguments.setdefault("kernel_config", {"ir_op_priority": IR_OP_PRIORITY})
    wants_async = arguments.pop("async_scheduling", not current_platform.is_cpu())
    args = AsyncEngineArgs(
        model=str(config.checkpoint),
        skip_tokenizer_init=True,
        scheduler_cls=ASYNC_SCHEDULER if wants_async else SCHEDULER,
        async_scheduling=wants_async,
        **arguments,
    )
    method = os.environ.get(PROCESS_METHOD)
    built = args.create_engine_config()
    if method is not None:
        os.environ[PROCESS_METHOD] = method  # the CPU platform sets its own, whatever the user has chosen
    if not built.use_v2_model_runner:
        raise ValueError("the speech plugin needs vLLM's Model Runner V2: set VLLM_USE_V2_MODEL_RUNNER=1")
    _refuse_what_does_not_work(built)
    # vLLM switches it off on CPU, where it gains little; tests ask for it all the same.
    built.scheduler_config.async_scheduling = wants_async
    return built


def _refuse_what_does_not_work(config: "VllmConfig") -> None:
    """ValueError, before a process is started, for ways to run a model that the plugin was not written for."""
    parallel = config.parallel_config
    refused = {
        "pipeline_parallel_size": parallel.pipeline_parallel_size > 1,
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size > 1,
        "decode_context_parallel_size": parallel.decode_context_parallel_size > 1,
        "enable_batch_sharded_sampling": parallel.enable_batch_sharded_sampling,
        "enable_dbo": parallel.enable_dbo,
        "speculative_config": config.speculative_config is not None,
        "lora_config": config.lora_config is not None,
    }
    if any(refused.values()):
        names = [name for name in refused if refused[name]]
        raise ValueError(f"the speech plugin works without {names}; tensor_parallel_size and data_parallel_size work")
