"""Embeddings of several streams, strict weight loading and checks of quantization for vLLM's causal language models."""

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.kernels.linear.scaled_mm import MarlinFP8ScaledMMLinearKernel
from vllm.model_executor.layers.fused_moe import RoutedExperts, UnquantizedFusedMoEMethod
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig
from vllm.model_executor.layers.quantization.kv_cache import BaseKVCacheMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod, VocabParallelEmbedding
from vllm.sequence import IntermediateTensors

from stretto.cpu_backend.int8 import use_int8
from stretto.engine.kernels.gpu.products import embed_rows, fp8_product
from stretto.engine.models.depth_transformer import DepthTransformer, DepthWeights, SteppedDepth
from stretto.engine.protocol import family_of
from stretto.engine.reply_rules import SegmentRules
from stretto.errors import CheckpointError
from stretto.family.audio_format import encoder_of
from stretto.family.base import DepthSpec
from stretto.family.image_format import ImageFormat

UNQUANTIZED = UnquantizedEmbeddingMethod, UnquantizedLinearMethod


def quantization_of(vllm_config: VllmConfig, module: str) -> QuantizationConfig | None:
    """Return vLLM's quantization for the layers of `module` (such as `depth`), or None if there is none.

    If a checkpoint in AWQ format does not list its unquantized modules, vLLM lists the parents of all unquantized
    tensors. The parent of `depth.embed` is `depth`, which would exclude all layers of the depth transformer, so
    `module` is removed from that list.
    """
    quant_config: Any = vllm_config.quant_config
    record = vllm_config.model_config.hf_config.to_dict()
    listed = getattr(quant_config, "modules_to_not_convert", None)
    if listed and not (record.get("quantization_config") or {}).get("modules_to_not_convert"):
        quant_config.modules_to_not_convert = [name for name in listed if name != module]
    return quant_config


def check_quantization(model: nn.Module) -> None:
    """Raise CheckpointError if a layer's quantization is not supported.

    Embeddings and heads are read as tables, so they may not be quantized. An input may not be quantized with one scale
    for all rows of a batch, because a reply would then depend on the other requests.
    """
    for name, layer in model.named_modules():
        method = type(getattr(layer, "quant_method", None))
        if isinstance(layer, VocabParallelEmbedding) and method not in UNQUANTIZED:
            raise CheckpointError(f"quantization: {name}: expected unquantized weights, got {method.__name__}")
        if shares_scale(layer):
            expected = "one scale for each row of the input (for example fp8_per_channel)"
            raise CheckpointError(
                f"quantization: {name}: expected {expected}, got one for the whole batch ({method.__name__})"
            )


def shares_scale(layer: nn.Module) -> bool:
    """Return True if a layer quantizes its input with one scale that depends on all rows of a batch."""
    if isinstance(layer, RoutedExperts):
        method = layer.quant_method
        return not isinstance(method, UnquantizedFusedMoEMethod) and not getattr(method, "per_act_token_quant", False)
    product = fp8_product(layer)
    if product is None or isinstance(product, MarlinFP8ScaledMMLinearKernel):  # multiplies in 16 bits
        return False
    scale = product.config.activation_quant_key.scale
    return not scale.static and scale.group_shape.is_per_tensor()


if TYPE_CHECKING:  # mix-in for any of vLLM's decoders; type-checked against one of them
    from vllm.model_executor.models.llama import LlamaForCausalLM as Decoder
else:
    Decoder = object


FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
EXPERTS = {"w13_weight": ("gate_proj", "up_proj"), "w2_weight": ("down_proj",)}  # fused across all experts of a layer
Weights = Iterable[tuple[str, Tensor]]


def load_strictly(model: "MultiStreamMixin", load: Callable[[Weights], set[str]], weights: Weights) -> set[str]:
    """Call `load` with `weights`, and return the names of the loaded parameters.

    Raises:
        CheckpointError: If a tensor does not have its parameter's shape, if tensors or parts of fused parameters are
            missing, or if the model's quantization is not supported.
    """
    check_quantization(model)
    if model.is_int8:
        use_int8(model)
    seen: dict[str, list[int]] = {}
    # loading may replace parameters
    expected = set(stored_parameters(model))
    parts = list(fused_parts(model))

    def watched() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            seen[name] = list(tensor.shape)
            yield name, tensor

    try:
        loaded = load(watched())
    except (AssertionError, RuntimeError) as error:
        name, shape = list(seen.items())[-1]
        raise CheckpointError(f"{name}: shape {shape} does not match: {error}") from error
    partly = {fused for name, fused in parts if name in seen}  # others are whole, in a tensor that may have any name
    unseen = {name: fused for name, fused in parts if not {name, fused} & seen.keys()}
    missing = (expected - loaded) | {name for name, fused in unseen.items() if fused in partly or fused not in loaded}
    if missing:
        raise CheckpointError(f"the checkpoint lacks {', '.join(sorted(missing))}")
    return loaded


def stored_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that a checkpoint must contain, keyed by name; those with defaults are excluded."""
    built = {
        f"{name}.{parameter_name}"
        for name, module in model.named_modules()
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if isinstance(getattr(module, "quant_method", None), BaseKVCacheMethod)
        or parameter_name == "input_scale_ub"  # a constant of the quantization's configuration
        or not parameter.numel()
    }
    return {name: parameter for name, parameter in model.named_parameters() if name not in built}


def fused_parts(model: nn.Module) -> Iterator[tuple[str, str]]:
    """For each tensor that is loaded into a fused parameter, yield its checkpoint name and the parameter's name.

    A checkpoint may contain the fused parameter instead of its parts.
    """
    for name, parameter in stored_parameters(model).items():
        module, _, parameter_name = name.rpartition(".")
        for projection in EXPERTS.get(parameter_name, ()):
            experts = module.removesuffix(".routed_experts")
            yield from ((f"{experts}.{number}.{projection}.weight", name) for number in range(len(parameter)))
        parent, _, fused = module.rpartition(".")
        if fused in FUSED:
            yield from ((f"{parent}.{projection}.{parameter_name}", name) for projection in FUSED[fused])


class StreamBias(nn.Module):
    """Bias per stream, [S, H], added to the hidden state before the stream's head (applied by `StreamHeads`)."""

    def __init__(self, num_streams: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_streams, width), requires_grad=False)


class AudioHead(nn.Module):
    """Audio heads of all streams, [n, H], replicated on every rank, for models whose LM head has no codes."""

    def __init__(self, size: int, width: int, has_bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, width), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(size), requires_grad=False) if has_bias else None


def depth_network(spec: DepthSpec, *arguments: Any) -> DepthWeights:
    """Return a depth transformer; `arguments` are the arguments of `DepthWeights` after the first."""
    if spec.network is not None:
        network: DepthWeights = spec.network(*arguments)
        return network
    return (SteppedDepth if spec.schedule else DepthTransformer)(spec, *arguments)


class MultiStreamMixin(Decoder):
    """Mix-in for a model whose input is the sum of the embeddings of a row's streams.

    The heads are applied by the sampler, which knows whether a row is text or audio.

    Attributes:
        has_conditions: True if the class has `conditions` for families that need them (`Mechanism.conditions`).
    """

    has_conditions = False

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        config = vllm_config.model_config.hf_config
        self.family = family_of(config)
        options = vllm_config.additional_config
        self.is_int8 = isinstance(options, dict) and options.get("int8", False)
        if self.family.mechanism.conditions is not None and not self.has_conditions:
            expected = f"a Llama backbone, because {self.family.name} has conditions"
            raise CheckpointError(f"config.json: architectures: expected {expected}, got {type(self).__name__}")
        layout = self.family.layout
        width = vllm_config.model_config.get_hidden_size()
        rules = SegmentRules(self.family, vllm_config.model_config.max_model_len)
        num_ends = len(rules.drawn_ends_of_audio)
        if self.family.has_stream_bias:
            self.stream_bias = StreamBias(layout.num_output_streams, width)
        if self.family.depth is not None:
            sizes = [len(ids) for ids in layout.audio]
            arguments = sizes, num_ends, width, quantization_of(vllm_config, "depth")
            self.depth = depth_network(self.family.depth, *arguments)
        if self.family.audio_head:
            num_ids = sum(len(rules.audio_ids(s)) for s in range(len(layout.audio)))
            self.audio_head = AudioHead(num_ids + num_ends, width, self.family.audio_head == "biased")
        pauses = self.family.mechanism.pauses
        if pauses is not None:
            self.pause_heads = AudioHead(len(pauses.lengths_s) * pauses.num_classes, width)
        speaker = self.family.mechanism.speaker
        steps = self.family.mechanism.steps
        if speaker is not None:
            speaker.extend(self, vllm_config)
        if steps is not None and steps.extend is not None:
            steps.extend(self, vllm_config)
        image_format = ImageFormat.from_config(config.to_dict())
        self.image_encoder: Any = None if image_format is None else image_format.encoder(self.model, vllm_config)
        self.adaptor: nn.Module = nn.Identity()
        encoder = encoder_of(config.to_dict())
        if encoder is not None:
            self._encoder: Any = import_module(encoder.network)
            self.audio_tower = self._encoder.audio_tower(config.audio_config)
            self.adaptor = self._encoder.audio_adaptor(config.audio_config, config.hidden_size)

    @staticmethod
    def get_model_state_cls() -> type:
        """Return the class that holds the model's per-request state (vLLM's hook)."""
        from stretto.engine.worker.model_state import SpeechModelState

        return SpeechModelState

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
        rows: torch.Tensor | None = None,
        encoded: torch.Tensor | None = None,
        is_encoded: torch.Tensor | None = None,
        latent_rows: torch.Tensor | None = None,
    ) -> Any:
        """Return the backbone's hidden states, [N, H].

        Args:
            positions: Positions of the rows, [N]; for a model with an image encoder, their numbers in the step.
            inputs_embeds: Buffer for the embedded rows, [N, H]; a piecewise CUDA graph reads it at a fixed address.
            rows: Ids of all input streams, [N, S], stream 0 first; None if the buffer is already filled.
            encoded: Encoded audio and images, [N, H].
            is_encoded: True for rows whose embeddings these replace, bool [N, 1].
            latent_rows: Indices of all rows that may have a latent, int64 [n]; None if any row may have one.
        """
        if rows is not None:
            assert inputs_embeds is not None
            embeds = self.embed_rows(rows, inputs_embeds, latent_rows)
            if encoded is not None and is_encoded is not None:
                inputs_embeds.copy_(torch.where(is_encoded, encoded, embeds))
        ids = None if inputs_embeds is not None else input_ids
        return self.model(ids, positions, intermediate_tensors, inputs_embeds, **self.layer_inputs(rows))

    def layer_inputs(self, rows: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Return more keyword arguments for the backbone, derived from `rows` [N, S]; tensors have fixed addresses."""
        return {}

    def embed_rows(
        self, rows: torch.Tensor, out: torch.Tensor, latent_rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Write the sum of each row's stream embeddings to `out`, and return it.

        Args:
            rows: Ids of all input streams, [N, S]. A silent pad contributes only on stream 0.
        """
        table = self.model.embed_tokens
        layout = self.family.layout
        if table.tp_size > 1:
            return out.copy_(tensor_model_parallel_all_reduce(self._embed_own(rows)))
        return embed_rows(table.get_parameter("weight"), rows, layout.pad_id, layout.pad_is_silent, out)

    def embed_audio(self, features: torch.Tensor) -> torch.Tensor:
        """Return the embedding rows [N, H] of one audio input, given its log-mel features [F, M]."""
        return self._encoder.embed_audio(self.audio_tower, self.adaptor, features)

    def _embed_own(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the sum of the embeddings in this rank's part of the vocabulary, [N, H], for an all-reduce."""
        table = self.model.embed_tokens
        layout = self.family.layout
        start = table.shard_indices.org_vocab_start_index
        stop = table.shard_indices.org_vocab_end_index
        is_own = (rows >= start) & (rows < stop)
        if layout.pad_is_silent:
            is_own[:, 1:] &= rows[:, 1:] != layout.pad_id
        weight = table.get_parameter("weight")
        own_ids = torch.where(is_own, rows - start, 0)
        return F.embedding_bag(own_ids, weight, mode="sum", per_sample_weights=is_own.to(weight.dtype))

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load weights as vLLM does, but raise CheckpointError for missing tensors or wrong shapes."""
        return load_strictly(self, super().load_weights, weights)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the hidden states unchanged; the sampler applies the appropriate head (`StreamHeads`)."""
        return hidden_states
