"""MCTP modules after a Qwen2 backbone.

They are decoder layers that follow the backbone's L = `num_hidden_layers` layers; the backbone does not run them. Their
tensors have the published names: for module k `model.layers.{L + k}`, `mtp_projs.{k}`, `mtp_embed_norms.{k}` and
`mtp_hidden_norms.{k}`. All modules share `model.norm` and `lm_head`.
"""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ReplicatedLinear
from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer
from vllm.platforms import current_platform

from stretto.engine.kernels.gpu.products import rms_norm, use_fused_operators
from stretto.engine.worker.predictors import GeneratedRows
from stretto.families.vita_audio.bursts import ModuleSchedules
from stretto.families.vita_audio.mechanism.module_rows import ModuleRows


def add_modules(bursts: ModuleSchedules, model: Any, vllm_config: VllmConfig) -> None:
    """Add the modules to a model of class `StrettoQwen2ForCausalLM` (`RowSteps.extend`).

    The model then keeps the last hidden states of the step's rows in its attribute `rows_hidden`, [max rows, H].
    """
    config: Any = vllm_config.model_config.hf_config
    number = bursts.num_modules
    first = config.num_hidden_layers
    size = config.hidden_size
    eps = config.rms_norm_eps
    for k in range(number):
        name = f"model.layers.{first + k}"
        model.model.layers.append(
            Qwen2DecoderLayer(config, vllm_config.cache_config, vllm_config.quant_config, prefix=name)
        )
    quantized: dict[str, Any] = {"quant_config": vllm_config.quant_config, "return_bias": False}
    model.mtp_projs = nn.ModuleList(
        ReplicatedLinear(2 * size, size, bias=False, prefix=f"mtp_projs.{k}", **quantized) for k in range(number)
    )  # not nn.Linear, whose order of summation depends on the number of rows
    model.mtp_embed_norms = nn.ModuleList(RMSNorm(size, eps=eps) for _ in range(number))
    model.mtp_hidden_norms = nn.ModuleList(RMSNorm(size, eps=eps) for _ in range(number))
    if current_platform.is_cuda():  # modules run outside torch.compile
        for module in (*model.model.layers[first:], model.mtp_projs, model.mtp_embed_norms, model.mtp_hidden_norms):
            use_fused_operators(module)
    max_rows = vllm_config.scheduler_config.max_num_batched_tokens
    dtype = vllm_config.model_config.dtype
    assert isinstance(dtype, torch.dtype)
    kept = model.rows_hidden = torch.zeros(max_rows, size, dtype=dtype)

    def keep(_: Any, inputs: Any, hidden: torch.Tensor) -> None:
        kept[: len(hidden)].copy_(hidden)

    model.register_forward_hook(keep)


class ModuleNetwork:
    """MCTP modules that `add_modules` added to a model, run one at a time.

    Attributes:
        rows_hidden: Last hidden states of the step's rows, [max rows, H], valid until the next step.
    """

    def __init__(self, model: Any, num_modules: int):
        self._model = model
        self.num_modules = num_modules
        self.rows_hidden: torch.Tensor = model.rows_hidden
        self._first = model.model.config.num_hidden_layers
        self._last_norm: Callable[..., Any] = model.model.norm.forward
        if current_platform.is_cuda():
            self._last_norm = partial(rms_norm, model.model.norm)

    def run_module(self, k: int, embeds: torch.Tensor, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the output of module k, [N, H].

        As in the published model, rotary positions are those of the embedded rows, not of the processed rows.

        Args:
            embeds: Embeddings of the rows k + 1 positions after the processed rows, [N, H].
            hidden: Output of module k - 1, or of the backbone if k is 0, [N, H].
            positions: Positions of the processed rows, int [N].
        """
        model = self._model
        both = torch.cat([model.mtp_embed_norms[k](embeds), model.mtp_hidden_norms[k](hidden)], -1)
        states, residual = model.model.layers[self._first + k](positions + (k + 1), model.mtp_projs[k](both), None)
        states, _ = self._last_norm(states, residual)
        return states

    def attention_layers(self) -> set[str]:
        """Return vLLM's names of the modules' attention layers."""
        layers = itertools.islice(self._model.model.layers, self._first, self._first + self.num_modules)
        return {layer.self_attn.attn.layer_name for layer in layers}


def module_rows(bursts: ModuleSchedules, model: Any, generated: GeneratedRows, vllm_config: VllmConfig) -> ModuleRows:
    """Return the predictor that runs the modules of a model (`RowSteps.predictor`)."""
    return ModuleRows(ModuleNetwork(model, bursts.num_modules), generated, bursts, vllm_config)
