"""vLLM options that the plugin does not support, checked before the engine starts and again inside it."""

from vllm.config import VllmConfig

from stretto.engine.request.adapters import Adapters


def check_config(config: VllmConfig) -> None:
    """Raise ValueError that names the unsupported options in `config`."""
    if not config.use_v2_model_runner:
        raise ValueError("the speech plugin needs vLLM's Model Runner V2: set VLLM_USE_V2_MODEL_RUNNER=1")
    parallel, scheduling = config.parallel_config, config.scheduler_config
    if scheduling.policy != "fcfs":
        raise ValueError(f"scheduling_policy: expected fcfs, got {scheduling.policy}")
    refused = {
        "nnodes": parallel.nnodes > 1,  # other nodes would have to be started by vLLM's own command
        "pipeline_parallel_size": parallel.pipeline_parallel_size > 1,
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size > 1,
        "decode_context_parallel_size": parallel.decode_context_parallel_size > 1,
        "enable_batch_sharded_sampling": parallel.enable_batch_sharded_sampling,
        "enable_dbo": parallel.enable_dbo,
        "long_prefill_token_threshold": scheduling.long_prefill_token_threshold > 0,
        "speculative_config": config.speculative_config is not None,
        "lora_config": config.lora_config is not None and not Adapters.of(config),  # set by our option `adapters`
    }
    if any(refused.values()):
        names = [name for name in refused if refused[name]]
        raise ValueError(f"the speech plugin works without {names}; tensor_parallel_size and data_parallel_size work")
