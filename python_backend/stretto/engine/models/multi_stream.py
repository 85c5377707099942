"""What a stock causal language model needs to read rows of several streams."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn
from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.sequence import IntermediateTensors

from stretto.engine.kernels.gpu.embed import embed_rows
from stretto.engine.models.depth_transformer import DepthTransformer
from stretto.engine.models.strict_loading import load_strictly
from stretto.engine.request.family import family_of
from stretto.engine.request.rules import SegmentRules
from stretto.families.audio_format import AudioFormat, MelFormat, StackedFormat, StatesFormat, VectorFormat
from stretto.families.bagpiper import model as bagpiper
from stretto.families.qwen3_omni_talker import model as qwen3_omni_talker
from stretto.families.qwen3_tts import model as qwen3_tts
from stretto.families.vita_audio import model as vita_audio

if TYPE_CHECKING:  # the mixin goes over any of vLLM's decoders; a type checker reads it over one of them
    from vllm.model_executor.models.llama import LlamaForCausalLM as Decoder
else:
    Decoder = object


ENCODERS: dict[type[AudioFormat], Any] = {
    MelFormat: bagpiper,
    StackedFormat: vita_audio,
    VectorFormat: qwen3_tts,
    StatesFormat: qwen3_omni_talker,
}


class StreamBias(nn.Module):
    """What is added to the hidden state before each stream's head, [S, H]; `heads.py` adds it. Whole on every rank."""

    def __init__(self, num_streams: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_streams, width), requires_grad=False)


class AudioHead(nn.Module):
    """The heads of all streams in audio, [n, H], where there is none over the vocabulary. Whole on every rank."""

    def __init__(self, size: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, width), requires_grad=False)


class MultiStreamMixin(Decoder):
    """Sums the embeddings of a row's streams; the sampler, which knows each row's segment, applies the heads."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self.family = family_of(config)
        if self.family.has_stream_bias:
            size = self.family.layout.num_output_streams, vllm_config.model_config.get_hidden_size()
            self.stream_bias = StreamBias(*size)
        if self.family.depth is not None:
            layout, width = self.family.layout, vllm_config.model_config.get_hidden_size()
            num_ends = len(SegmentRules(self.family, vllm_config.model_config.max_model_len).drawn_ends_of_audio)
            sizes = layout.num_output_streams, layout.codebook_size, num_ends, width
            self.depth = DepthTransformer(self.family.depth, *sizes)
        if self.family.has_audio_head:
            layout, width = self.family.layout, vllm_config.model_config.get_hidden_size()
            rules = SegmentRules(self.family, vllm_config.model_config.max_model_len)
            num_ids = sum(len(rules.audio_ids(s)) for s in range(len(layout.audio)))
            self.audio_head = AudioHead(num_ids + len(rules.drawn_ends_of_audio), width)
        audio_format = AudioFormat.from_config(config.to_dict())
        if audio_format is not None:
            self._encoder = ENCODERS[type(audio_format)]
            self.audio_tower = self._encoder.audio_tower(config.audio_config)
            self.adaptor = self._encoder.audio_adaptor(config.audio_config, config.hidden_size)

    @staticmethod
    def get_model_state_cls() -> type:
        """vLLM's hook for per-request state beside the model."""
        from stretto.engine.worker.model_state import SpeechModelState

        return SpeechModelState

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        heard: torch.Tensor | None = None,
        is_heard: torch.Tensor | None = None,
    ) -> Any:
        """Hidden states [N, H] of `rows` [N, S], the ids of all input streams, stream 0 first.

        `inputs_embeds` [N, H] is where the embedded rows go: a piece of a CUDA graph reads them at a fixed address.
        `heard` [N, H] takes their place where `is_heard` [N, 1] (see `worker/audio_embeddings.py`).
        """
        if rows is not None:
            assert inputs_embeds is not None
            embeds = self.embed_rows(rows, inputs_embeds)
            if heard is not None and is_heard is not None:
                inputs_embeds.copy_(torch.where(is_heard, heard, embeds))
        ids = None if inputs_embeds is not None else input_ids
        return self.model(ids, positions, intermediate_tensors, inputs_embeds, **self.layer_inputs(rows))

    def layer_inputs(self, rows: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """What the layers of a backbone are told of `rows` [N, S] beside their embeddings; at fixed addresses."""
        return {}

    def embed_rows(self, rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """The sum of all streams' embeddings, [N, S] -> `out` [N, H]; a silent pad counts on stream 0 only."""
        table, layout = self.model.embed_tokens, self.family.layout
        if table.tp_size > 1:
            return out.copy_(tensor_model_parallel_all_reduce(self._embed_own(rows)))
        return embed_rows(table.get_parameter("weight"), rows, layout.pad_id, layout.pad_is_silent, out)

    def embed_audio(self, features: torch.Tensor) -> torch.Tensor:
        """What one audio's features [F, M] put in the place of embedded rows, [N, H]."""
        return self._encoder.embed_audio(self.audio_tower, self.adaptor, features)

    def _embed_own(self, rows: torch.Tensor) -> torch.Tensor:
        """What this rank's part of the vocabulary adds to the rows [N, H]: one all-reduce then serves all streams."""
        table, layout = self.model.embed_tokens, self.family.layout
        start, stop = table.shard_indices.org_vocab_start_index, table.shard_indices.org_vocab_end_index
        is_own = (rows >= start) & (rows < stop)
        if layout.pad_is_silent:
            is_own[:, 1:] &= rows[:, 1:] != layout.pad_id
        weight = table.get_parameter("weight")
        own_ids = torch.where(is_own, rows - start, 0)
        return F.embedding_bag(own_ids, weight, mode="sum", per_sample_weights=is_own.to(weight.dtype))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """As vLLM loads them, and nothing may be missing, unknown or of another shape."""
        return load_strictly(self, super().load_weights, weights)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The hidden states, as they are: which head a row needs depends on its segment (`heads.py`)."""
        return hidden_states
