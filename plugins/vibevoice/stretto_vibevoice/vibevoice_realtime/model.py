"""VibeVoice Realtime's two language models, with the head for latents and the classifier of the end.

    text rows   ─► text layers (the text alone) ─► + type 1 ─┐
    frames      ─► connector                    ─► + type 0 ─┴─► speech layers ─► h ─► head(h, unconditional state) ─► x
                                                                                  └──► end?

The keys and values of the text layers are stored in vLLM's KV blocks like those of the speech layers, so blocks can be
shared, and requests preempted. The rows of the earlier text tokens follow from a row's position. The text layers attend
to them and to the voice's text, one row at a time, so a result does not depend on the batch.

The rows of a voice have no embeddings: their published keys and values are written to the KV blocks instead of those
that the speech layers compute.
"""

from typing import Any

import torch
from torch import nn
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.forward_context import get_forward_context, is_forward_context_available
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM

from stretto.engine.models.latents import LatentMixin
from stretto.family.plugin import VOCABULARY
from stretto_vibevoice.vibevoice.model import Connector, DiffusionHead, FeedForward, linear
from stretto_vibevoice.vibevoice_realtime.family import TextWindows, VibeVoiceRealtimeVocabulary
from stretto_vibevoice.vibevoice_realtime.mechanism.draw import EndHead, WindowReadout

# types of a row
SPEECH = 0
TEXT = 1


class EndClassifier(nn.Module):
    """Logit that the reply ends after a frame."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1 = linear(width, width, bias=True)
        self.fc2 = linear(width, 1, bias=True)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(hidden)))


class TextLayer(nn.Module):
    """Layer of the text model. `attn` only reserves space in vLLM's KV blocks and is not computed."""

    def __init__(self, vllm_config: VllmConfig, config: Any, prefix: str):
        super().__init__()
        width = config.hidden_size
        heads = config.num_attention_heads
        self.num_kv_heads = config.num_key_value_heads
        self.size = width // heads
        self.input_layernorm = RMSNorm(width, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(width, eps=config.rms_norm_eps)
        self.q_proj = linear(width, width, bias=True)
        self.k_proj, self.v_proj = (linear(width, self.num_kv_heads * self.size, bias=True) for _ in range(2))
        self.o_proj = linear(width, width)
        self.mlp = FeedForward(width, config.intermediate_size)
        self.attn = Attention(
            heads,
            self.size,
            self.size**-0.5,
            num_kv_heads=self.num_kv_heads,
            cache_config=vllm_config.cache_config,
            prefix=f"{prefix}.attn",
        )

    def store(self) -> torch.Tensor:
        """Return the KV blocks as keys and values, [slots, 2, K, D], in a layout of our own."""
        cache = self.attn.kv_cache
        shape = (2, self.num_kv_heads, self.size)
        row = torch.Size(shape).numel()
        last = sum((size - 1) * stride for size, stride in zip(cache.shape, cache.stride(), strict=True))
        assert last + 1 == cache.numel(), "the KV blocks of a layer are one piece of memory"
        strides = row, row // 2, self.size, 1
        return cache.as_strided((cache.numel() // row, *shape), strides, cache.storage_offset())

    @property
    def block_size(self) -> int:
        """Number of rows in a KV block."""
        cache = self.attn.kv_cache
        return cache.numel() // (2 * self.num_kv_heads * self.size * cache.shape[0])

    def forward(
        self,
        x: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        slots: torch.Tensor,
        reads: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        """Return the output [n, H] for text rows x [n, H].

        Args:
            turns: Cosine and sine of the rotary embedding, [n, 1, D / 2] each.
            slots: Slot of each row in the KV blocks, [n].
            reads: For each row, the keys and values of the voice [r, 2, K, D], and the slots of the earlier text rows
                and of the row itself.
        """
        normed = self.input_layernorm(x)
        queries = rotate(self.q_proj(normed).unflatten(1, (-1, self.size)), turns)
        keys = rotate(self.k_proj(normed).unflatten(1, (-1, self.size)), turns)
        store = self.store()
        store[slots] = torch.stack([keys, self.v_proj(normed).unflatten(1, (-1, self.size))], 1).to(store.dtype)
        seen = [
            self._attend(query, voice, store[of_text]) for query, (voice, of_text) in zip(queries, reads, strict=True)
        ]
        x = x + self.o_proj(torch.stack(seen).to(x.dtype))
        return x + self.mlp(self.post_attention_layernorm(x))

    def _attend(self, query: torch.Tensor, voice: torch.Tensor, of_text: torch.Tensor) -> torch.Tensor:
        """Return the attention's output [H] of a row. Its inputs are copied, so that their alignment is constant."""
        keys, values = torch.cat([voice, of_text.to(voice.dtype)]).permute(1, 2, 0, 3).contiguous()  # [K, n, D]
        groups = query.to(voice.dtype).unflatten(0, (self.num_kv_heads, -1)).clone()
        scores = torch.softmax(self.size**-0.5 * (groups @ keys.transpose(1, 2)), -1)
        return (scores @ values).flatten()


def rotate(x: torch.Tensor, turns: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Return x [n, heads, D] with its halves rotated by the cosine and sine [n, 1, D / 2]."""
    first, second = x.float().chunk(2, -1)
    cos, sin = turns
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape), requires_grad=False)


def attention_metadata(layer: str) -> Any:
    """Return vLLM's attention metadata of a step for a layer; None in its profiling run."""
    by_layer = get_forward_context().attn_metadata if is_forward_context_available() else None
    return by_layer.get(layer) if isinstance(by_layer, dict) else None


class TextModel(nn.Module):
    """Layers that read the text of a reply alone, after the text of its voice."""

    def __init__(self, vllm_config: VllmConfig, vocabulary: VibeVoiceRealtimeVocabulary, windows: TextWindows):
        super().__init__()
        config: Any = vllm_config.model_config.hf_config
        self._windows = windows
        self._theta = float(config.rope_parameters["rope_theta"])
        self._voices = torch.tensor([(voice.num_text_rows, voice.num_rows) for voice in vocabulary.voices] or [(1, 1)])
        self.num_voices = len(self._voices)
        self.size = config.hidden_size // config.num_attention_heads
        # vLLM sorts KV caches by the numbers in the names of their layers.
        self.layers = nn.ModuleList(
            TextLayer(vllm_config, config, f"text.layers.{config.num_hidden_layers + number}")
            for number in range(config.num_text_layers)
        )
        num_rows = int(self._voices[:, 0].sum())
        self.voices = empty(len(self.layers), num_rows, 2, config.num_key_value_heads, self.size)

    def forward(self, x: torch.Tensor, at: torch.Tensor, voice: torch.Tensor) -> torch.Tensor:
        """Return the hidden states [n, H] of text rows.

        Args:
            x: Embeddings of the tokens, [n, H].
            at: Indices of the rows in the step, int64 [n].
            voice: Numbers of the voices, int64 [n].
        """
        first: Any = self.layers[0]
        metadata = attention_metadata(first.attn.layer_name)
        if metadata is None:  # vLLM's profiling run
            return x
        starts = metadata.query_start_loc.long()
        lengths = metadata.seq_lens.long()
        request = torch.searchsorted(starts[1:], at, right=True)
        position = at - starts[request + 1] + lengths[request]
        voices = self._voices.to(at.device)
        begins = torch.cumsum(voices[:, 0], 0) - voices[:, 0]
        number = self._windows.within_window((position - voices[voice, 1]).clamp(min=0))[1]
        size = first.block_size
        slots = list[torch.Tensor]()
        spans = list[slice]()
        for last, one, owner in zip(number.tolist(), voice.tolist(), request.tolist(), strict=True):
            rows = self._windows.index_of(torch.arange(last + 1, device=at.device)) + voices[one, 1]
            slots.append(metadata.block_table[owner, rows // size].long() * size + rows % size)
            spans.append(slice(int(begins[one]), int(begins[one] + voices[one, 0])))
        turns = self._turns(voices[voice, 0] + number)
        for layer, texts in zip(self.layers, self.voices, strict=True):
            reads = [(texts[span], slots_read) for span, slots_read in zip(spans, slots, strict=True)]
            x = layer(x, turns, metadata.slot_mapping[at].long(), reads)
        return x

    def _turns(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cosine and sine of the rotary embedding, [n, 1, D / 2] each, at positions [n]."""
        rates = self._theta ** -(torch.arange(0, self.size, 2, device=position.device).float() / self.size)
        angles = position.float()[:, None, None] * rates
        return angles.cos(), angles.sin()


def write_keys_and_values(layers: list[Any], rows: torch.Tensor, at: torch.Tensor) -> None:
    """Write keys and values to the KV blocks, in place of those that the step will compute.

    Args:
        rows: Keys and values, [layers, n, 2, K * D].
        at: Indices of the rows in the step, int64 [n].
    """
    metadata = attention_metadata(layers[0].layer_name)
    if metadata is None:
        return
    slots = metadata.slot_mapping
    also = get_forward_context().slot_mapping
    slots_of_rows = slots[at].clone()
    for layer, values in zip(layers, rows, strict=True):
        halves = values.unflatten(2, (-1, layer.head_size)).to(layer.kv_cache.dtype).unbind(1)
        layer.impl.do_kv_cache_update(layer, *(half.contiguous() for half in halves), layer.kv_cache, slots_of_rows)
    for mapping in (slots, also.get(layers[0].layer_name, slots) if isinstance(also, dict) else slots):
        mapping[at] = 0  # in vLLM's null block, which no request reads


class StrettoVibeVoiceRealtimeForCausalLM(LatentMixin, Qwen2ForCausalLM):
    """VibeVoice Realtime for vLLM; selected by `architectures` in config.json."""

    has_end = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config: Any = vllm_config.model_config.hf_config
        if get_tensor_model_parallel_world_size() > 1:
            raise ValueError("tensor_parallel_size: expected 1, because voices are keys and values of all heads")
        width = config.hidden_size
        windows = self.family.track
        assert isinstance(windows, TextWindows)
        vocabulary = VibeVoiceRealtimeVocabulary.from_record(getattr(config, VOCABULARY))
        self._windows = windows
        self._lane = vocabulary.text_stream
        self._first_voice_row = vocabulary.end + 1
        self.text = TextModel(vllm_config, vocabulary, windows)
        self.acoustic_connector = Connector(vocabulary.num_numbers, width)
        self.types = empty(2, width)
        self.end_classifier = EndClassifier(width)
        self.head = DiffusionHead(config.diffusion_head, width, vocabulary.num_numbers)
        size = width // config.num_attention_heads
        num_layers = len(self.model.layers)
        num_rows = max(1, vocabulary.vocab_size - self._first_voice_row)
        self.voice_rows = empty(num_layers, num_rows, 2, config.num_key_value_heads * size)
        self.first_states = empty(self.text.num_voices, width)
        compilation = vllm_config.compilation_config
        if self.types.device.type != "cpu" and compilation.cudagraph_mode.has_full_cudagraphs():
            compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE  # the text layers depend on values on the device

    def embed_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of frames [N, D]."""
        return self.acoustic_connector(latents[:, :-1]) + self.types[SPEECH]

    def embed_rows(
        self, rows: torch.Tensor, out: torch.Tensor, latent_rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Write the embeddings of `rows` [N, S] to `out` [N, H] (`LatentMixin.embed_rows`)."""
        out = super().embed_rows(rows, out, latent_rows)
        (at,) = (rows[:, 0] >= self._first_voice_row).nonzero(as_tuple=True)
        if len(at):
            layers = [layer.self_attn.attn for layer in self.model.layers]
            write_keys_and_values(layers, self.voice_rows[:, rows[at, 0].long() - self._first_voice_row], at)
        (at,) = (rows[:, 0] == self._windows.word).nonzero(as_tuple=True)
        if len(at):
            table = self.model.embed_tokens.get_parameter("weight")
            voice = rows[at, 1].long()
            voice = voice.clamp(0, self.text.num_voices - 1)  # vLLM's warm-up uses arbitrary ids
            x = self.text(table[rows[at, self._lane].long()], at, voice)
            out[at] = (x + self.types[TEXT]).to(out.dtype)
        return out

    def latent_predictor(self) -> DiffusionHead:
        assert self.family.layout.latents is not None
        return self.head.prepare(self.family.layout.latents.steps)

    def readout_of(self, predictor: Any, rules: Any) -> WindowReadout:
        """Return the readout, whose head scores two ids, a frame and the end of the reply."""
        head = EndHead(self.end_classifier, rules, self.types.device)
        return WindowReadout(head, predictor, self.types.shape[1], self.first_states.data)
