"""Engine arguments and file checks for LoRA adapters, and checks of vLLM's configuration."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from vllm.config import VllmConfig
from vllm.lora.peft_helper import PEFTHelper
from vllm.lora.request import LoRARequest

from stretto.config import EngineConfig
from stretto.engine.adapter_table import CONFIG, WEIGHTS
from stretto.engine.protocol import configured_adapters
from stretto.errors import CheckpointError, shown
from stretto.untrusted_files import UNPARSABLE, json_object, regular_file

# keys in vLLM's `additional_config`
KEY = "adapters"
FOLDER = "adapters_folder"
RANKS = 1, 8, 16, 32, 64, 128, 256, 320, 512  # ranks that vLLM supports (`MaxLoRARanks`)
# Linear layers of a decoder layer, as fused by vLLM. They are the same in all backbones.
FUSED = "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"
PLAIN_PATTERN = re.compile(r"\^?[\w.]+")  # PEFT keys are regular expressions, which can take exponential time
TENSOR = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.(\w+\.\w+)\.lora_([AB])\.weight")


def lora_requests(config: VllmConfig) -> list[LoRARequest]:
    """Return vLLM's records of the adapters configured for an engine."""
    assert isinstance(config.additional_config, dict)
    return [LoRARequest(*adapter) for adapter in configured_adapters(config.additional_config.get(KEY, {}))]


def _has_adapters(config: VllmConfig) -> bool:
    assert isinstance(config.additional_config, dict)
    return bool(lora_requests(config)) or FOLDER in config.additional_config


def lora_arguments(config: EngineConfig) -> dict[str, Any]:
    """Return vLLM's engine arguments for adapters (empty if there are none and none can be loaded later).

    One extra slot is reserved and stays empty: vLLM's CPU kernels (`bgmv_shrink`, `bgmv_expand`) use index -1 for rows
    without an adapter, which selects the last slot.

    Raises:
        CheckpointError: If an adapter cannot be read, uses an unsupported feature, or its rank is too large.
    """
    ranks = [_largest_rank(name, folder) for name, folder in config.adapter_folders.items()]
    num_slots = len(ranks) + 1
    if config.loadable_folder is not None:
        ranks.append(config.adapter_rank)
        num_slots += config.adapter_slots
    if not ranks:
        return {}
    rank = max(ranks)
    if rank > RANKS[-1]:
        raise CheckpointError(f"adapters: expected ranks of at most {RANKS[-1]}, got {rank}")
    room = min(limit for limit in RANKS if limit >= rank)
    return {"enable_lora": True, "max_loras": num_slots, "max_cpu_loras": num_slots, "max_lora_rank": room}


def restrict_to_backbone(config: VllmConfig, adapters: Mapping[str, Path]) -> None:
    """Restrict LoRA in `config` to the backbone's linear layers, and check that the adapters fit (`check_adapter`)."""
    if config.lora_config is None:
        return
    num_layers = config.model_config.hf_config.num_hidden_layers
    config.lora_config.target_modules = [
        f"model.layers.{layer}.{name}" for layer in range(num_layers) for name in FUSED
    ]
    for name, folder in adapters.items():
        check_adapter(name, folder, config)


def _largest_rank(name: str, folder: Path) -> int:
    written = _read_config(name, folder)
    return max([written.r, *written.rank_pattern.values()])


def _read_config(name: str, folder: Path) -> PEFTHelper:
    """Return an adapter's PEFT configuration, or raise CheckpointError for features that vLLM does not support."""
    try:
        config = PEFTHelper.from_dict(json_object(folder / CONFIG))
        patterns = {**config.rank_pattern, **config.alpha_pattern}
    except (CheckpointError, *UNPARSABLE) as error:
        raise CheckpointError(f"adapters.{name}: {folder / CONFIG} cannot be read: {error}") from None
    if type(config.r) is not int:
        raise CheckpointError(f"adapters.{name}: {folder / CONFIG}: r: expected an integer, got {shown(config.r)}")
    for key in patterns:
        if PLAIN_PATTERN.fullmatch(key) is None:
            expected = "a module name made of letters, digits, _ and ."
            raise CheckpointError(f"adapters.{name}: {folder / CONFIG}: expected {expected}, got {shown(key)}")
    refused = config._validate_features()
    if config.bias != "none":
        refused.append("Adapter bias is not supported.")
    if refused:
        raise CheckpointError(f"adapters.{name}: {' '.join(refused)}")
    return config


def check_adapter(name: str, folder: Path, config: VllmConfig) -> None:
    """Raise CheckpointError unless each tensor of an adapter belongs to a backbone layer and has the right shape.

    vLLM does not check this. It would apply too small a tensor to only a part of the layer, and it would compute a
    tensor's scale from the configured rank even if the tensor has another rank.
    """
    assert config.lora_config is not None
    max_rank = config.lora_config.max_lora_rank
    if (largest := _largest_rank(name, folder)) > max_rank:
        raise CheckpointError(f"adapters.{name}: expected ranks of at most {max_rank}, got {largest}")
    path = folder / WEIGHTS
    num_layers = config.model_config.hf_config.num_hidden_layers
    sizes = _sizes(config)
    ranks = dict[str, dict[str, int]]()
    try:
        shapes = _shapes(regular_file(path))
    except (CheckpointError, OSError, SafetensorError) as error:
        raise CheckpointError(f"adapters.{name}: {path} cannot be read: {error}") from None
    for tensor, shape in shapes.items():
        match = TENSOR.fullmatch(tensor)
        if match is None or match[2] not in sizes or int(match[1]) >= num_layers:
            expected = f"tensors of model.layers.0 to {num_layers - 1}, {', '.join(sizes)}"
            raise CheckpointError(f"adapters.{name}: expected {expected}; got {tensor}")
        is_first = match[3] == "A"
        size_in, size_out = sizes[match[2]]
        rank = shape[not is_first] if len(shape) == 2 else 0
        if shape != ((rank, size_in) if is_first else (size_out, rank)):
            expected = f"[r, {size_in}]" if is_first else f"[{size_out}, r]"
            raise CheckpointError(f"adapters.{name}: expected {tensor} of shape {expected}, got {list(shape)}")
        ranks.setdefault(f"model.layers.{match[1]}.{match[2]}", {})[match[3]] = rank
    if not ranks:
        raise CheckpointError(f"adapters.{name}: {path} has no tensors")
    written = _read_config(name, folder)
    for layer, of in ranks.items():
        rank, _ = written.get_rank_and_scaling(layer)
        if of != {"A": rank, "B": rank}:
            raise CheckpointError(
                f"adapters.{name}: expected lora_A and lora_B of rank {rank} for {layer}, got ranks {of}"
            )


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as file:
        return {tensor: tuple(file.get_slice(tensor).get_shape()) for tensor in file.keys()}  # noqa: SIM118


def _sizes(config: VllmConfig) -> dict[str, tuple[int, int]]:
    """Return (input width, output width) of each linear layer in a decoder layer, keyed by name."""
    model = config.model_config
    hidden = model.get_hidden_size()
    inner = model.hf_config.intermediate_size
    head = model.get_head_size()
    queried = model.hf_config.num_attention_heads * head
    held = model.get_total_num_kv_heads() * head
    return {
        "self_attn.q_proj": (hidden, queried),
        "self_attn.k_proj": (hidden, held),
        "self_attn.v_proj": (hidden, held),
        "self_attn.o_proj": (queried, hidden),
        "mlp.gate_proj": (hidden, inner),
        "mlp.up_proj": (hidden, inner),
        "mlp.down_proj": (inner, hidden),
    }


def check_config(config: VllmConfig) -> None:
    """Raise ValueError if `config` has options that the plugin does not support, and list them."""
    if not config.use_v2_model_runner:
        raise ValueError("the speech plugin needs vLLM's Model Runner V2: set VLLM_USE_V2_MODEL_RUNNER=1")
    parallel = config.parallel_config
    scheduling = config.scheduler_config
    if scheduling.policy != "fcfs":
        raise ValueError(f"scheduling_policy: expected fcfs, got {scheduling.policy}")
    refused = {
        "nnodes": parallel.nnodes > 1,  # multi-node setups need vLLM's own command line
        "data_parallel_size of a mixture of experts": parallel.data_parallel_size > 1 and config.model_config.is_moe,
        "pipeline_parallel_size": parallel.pipeline_parallel_size > 1,
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size > 1,
        "decode_context_parallel_size": parallel.decode_context_parallel_size > 1,
        "enable_batch_sharded_sampling": parallel.enable_batch_sharded_sampling,
        "enable_dbo": parallel.enable_dbo,
        "long_prefill_token_threshold": scheduling.long_prefill_token_threshold > 0,
        "speculative_config": config.speculative_config is not None,
        "lora_config": config.lora_config is not None and not _has_adapters(config),
    }
    if any(refused.values()):
        names = [name for name in refused if refused[name]]
        raise ValueError(
            f"the speech plugin does not support {names}; it supports tensor_parallel_size and data_parallel_size"
        )
