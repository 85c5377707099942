"""vLLM's configuration for the engine. The environment is set first; vllm is imported only after that."""

import os
from typing import TYPE_CHECKING, Any

from stretto.config import EngineConfig
from stretto.engine.environment import prepare_environment, require_batch_invariance
from stretto.families.registry import config_at, family_at
from stretto.streams.layout import LatentSpec

if TYPE_CHECKING:
    from vllm.config import VllmConfig


SCHEDULER = "stretto.engine.scheduling.scheduler.SpeechScheduler"
WORKER = "stretto.engine.worker.speech_worker.SpeechWorker"
PROCESS_METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
ASYNC_SCHEDULER = "stretto.engine.scheduling.scheduler.SpeechAsyncScheduler"
CAPTURE_SIZES = "max_cudagraph_capture_size", "cudagraph_capture_sizes"
MAX_CAPTURED_ROWS = 512  # vLLM's own limit
LATENT_PART = 8  # latents may take at most 1 / LATENT_PART of the KV cache's memory


def vllm_config(config: EngineConfig) -> "VllmConfig":
    """Return vLLM's configuration for `config`, with the plugin's scheduler, worker and options.

    Raises:
        ValueError: If an option is not supported.
        CheckpointError: If the checkpoint or an adapter cannot be used.
    """
    prepare_environment()
    if config.batch_invariant:
        require_batch_invariance()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    from stretto.engine import adapters
    from stretto.engine.adapters import check_config

    folders = config.adapter_folders
    config_at(config.checkpoint)  # rejects keys that make vLLM load code or a model from elsewhere
    arguments = config.engine_args | adapters.lora_arguments(folders)
    paths = {name: str(folder) for name, folder in folders.items()}
    ours = {name: getattr(config, name) for name in ("kv_share", "max_waiting", "first_frame_target_s", "live_reserve")}
    ours[adapters.KEY] = paths
    ours = {name: value for name, value in ours.items() if value not in (None, {})}
    if ours:
        arguments["additional_config"] = arguments.get("additional_config", {}) | ours
    if current_platform.is_cpu():
        from stretto.engine.kernels.cpu.products import IR_OP_PRIORITY

        arguments.setdefault("kernel_config", {"ir_op_priority": IR_OP_PRIORITY})
    else:
        arguments |= captured_rows(config)
    wants_async = arguments.pop("async_scheduling", not current_platform.is_cpu())
    arguments.setdefault("use_tqdm_on_load", False)  # no progress bar in the log
    args = AsyncEngineArgs(
        model=str(config.checkpoint),
        skip_tokenizer_init=True,
        scheduler_cls=ASYNC_SCHEDULER if wants_async else SCHEDULER,
        async_scheduling=wants_async,
        worker_cls=WORKER,
        **arguments,
    )
    method = os.environ.get(PROCESS_METHOD)
    built = args.create_engine_config()
    if method is not None:
        os.environ[PROCESS_METHOD] = method  # restore the user's choice, which the CPU platform overwrites
    check_config(built)
    check_latent_table(built, family_at(config.checkpoint).layout.latents)
    adapters.restrict_to_backbone(built, folders)
    # vLLM disables async scheduling on the CPU, where it gains little; tests need it.
    built.scheduler_config.async_scheduling = wants_async
    return built


def check_latent_table(config: "VllmConfig", latents: LatentSpec | None) -> None:
    """Check that the table of latents, which has an entry per slot and position, is small compared to the KV cache.

    Args:
        config: vLLM's configuration.
        latents: Latents of the family; None if its frames are codes.

    Raises:
        ValueError: If the table is larger than an eighth of the KV cache. A cache without a fixed size is not checked.
    """
    memory = config.cache_config.kv_cache_memory_bytes
    if latents is None or memory is None:
        return
    num_slots, length = config.scheduler_config.max_num_seqs, config.model_config.max_model_len
    position_bytes = num_slots * latents.num_words * 4  # float32
    if (length + 1) * position_bytes > memory // LATENT_PART:
        longest = max(memory // LATENT_PART // position_bytes - 1, 0)
        raise ValueError(
            f"max_model_len: expected at most {longest} with max_num_seqs {num_slots}, so that latents take at most an"
            f" eighth of kv_cache_memory_bytes ({memory}), got {length}"
        )


def captured_rows(config: EngineConfig) -> dict[str, Any]:
    """Return the maximum number of rows in a CUDA graph as a vLLM argument; empty if the operator has set it.

    vLLM's default is two rows per request. MCTP modules process a window of rows per request and need more.

    Raises:
        ValueError: If the frames of the family are latents, which cannot be generated on a GPU.
    """
    arguments, family = config.engine_args, family_at(config.checkpoint)
    bursts = family.bursts
    if family.layout.latents:
        raise ValueError(f"{family.name}: vLLM's build for CPUs is required, because its frames are latents")
    compilation = arguments.get("compilation_config")
    given = {**arguments, **(compilation if isinstance(compilation, dict) else {})}
    if bursts is None or "max_num_seqs" not in given or any(name in given for name in CAPTURE_SIZES):
        return {}
    return {CAPTURE_SIZES[0]: min(MAX_CAPTURED_ROWS, bursts.window * given["max_num_seqs"])}
