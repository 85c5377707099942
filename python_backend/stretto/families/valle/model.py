"""VALL-E's autoregressive model: GPT-2 with learned positions, which equals ESPnet's decoder except for names."""

from collections.abc import Iterable, Iterator

import torch
from vllm.config import VllmConfig
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.gpt2 import GPT2LMHeadModel, GPT2Model

from stretto.engine.models.multi_stream import MultiStreamMixin, load_strictly

HEAD = "audio_head.weight"


class StrettoValleForCausalLM(MultiStreamMixin, GPT2LMHeadModel):
    """VALL-E's autoregressive model for vLLM; selected by `architectures` in config.json."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.transformer.embed_tokens = self.transformer.wte  # the attribute name that other backbones have

    @property
    def model(self) -> GPT2Model:
        """The transformer, under the attribute name that other backbones have."""
        return self.transformer

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load weights as vLLM does, but raise an error if any is missing, unknown or of another shape."""
        return load_strictly(self, self._load, weights)

    def _load(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load all weights. `audio_head.weight` is loaded here, because GPT-2's loader would treat it as a layer's."""
        loaded = set[str]()

        def layers() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in weights:
                if name == HEAD:
                    default_weight_loader(self.audio_head.weight, tensor)
                    loaded.add(name)
                else:
                    yield name, tensor

        return GPT2LMHeadModel.load_weights(self, layers()) | loaded
