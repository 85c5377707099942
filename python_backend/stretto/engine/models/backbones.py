"""Backbones with several streams per row, which vLLM selects by `architectures` in config.json."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.gpt2 import GPT2LMHeadModel, GPT2Model
from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.qwen3_moe import Qwen3MoeForCausalLM

from stretto.engine.models.multi_stream import MultiStreamMixin, load_strictly
from stretto.engine.protocol import family_of


class StrettoLlamaForCausalLM(MultiStreamMixin, LlamaForCausalLM):
    """Llama with several streams per row, and a network of conditions if the family's mechanism has one."""

    has_conditions = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        conditions = self.family.mechanism.conditions
        self.conditions = None
        if conditions is not None:
            self.conditions = conditions.network(vllm_config.model_config.get_hidden_size())

    def _init_model(
        self, vllm_config: VllmConfig, prefix: str = "", layer_type: type[nn.Module] = LlamaDecoderLayer
    ) -> LlamaModel:
        conditions = family_of(vllm_config.model_config.hf_config).mechanism.conditions
        if conditions is not None:
            layer_type = conditions.layer()
        model: LlamaModel = super()._init_model(vllm_config, prefix, layer_type)
        return model

    def embed_rows(
        self, rows: torch.Tensor, out: torch.Tensor, latent_rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Do the same as `MultiStreamMixin.embed_rows`, and add the condition vectors of the rows, if any."""
        embeds = super().embed_rows(rows, out, latent_rows)
        return embeds if self.conditions is None else self.conditions.add_to(embeds)


class StrettoQwen2ForCausalLM(MultiStreamMixin, Qwen2ForCausalLM):
    """Qwen2 with several streams per row."""


class StrettoQwen3ForCausalLM(MultiStreamMixin, Qwen3ForCausalLM):
    """Qwen3 with several streams per row."""


# Type-checked against Llama, because vLLM lists the base classes in another order.
class StrettoQwen3MoeForCausalLM(MultiStreamMixin, Qwen3MoeForCausalLM):  # type: ignore[misc, metaclass]
    """Qwen3-MoE with several streams per row."""


AUDIO_HEAD = "audio_head."


class StrettoGpt2ForCausalLM(MultiStreamMixin, GPT2LMHeadModel):
    """GPT-2 with learned positions and several streams per row."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.transformer.embed_tokens = self.transformer.wte  # the attribute name that other backbones use

    @property
    def model(self) -> GPT2Model:
        """The transformer, under the attribute name that the other backbones use."""
        return self.transformer

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load weights as vLLM does, but raise an error for a missing, unknown or wrongly shaped weight."""
        return load_strictly(self, self._load, weights)

    def _load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load all weights; the audio head separately, because GPT-2's loader would treat it as part of a layer."""
        loaded = set[str]()

        def layers() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                if name.startswith(AUDIO_HEAD):
                    default_weight_loader(self.get_parameter(name), tensor)
                    loaded.add(name)
                else:
                    yield name, tensor

        return GPT2LMHeadModel.load_weights(self, layers()) | loaded
