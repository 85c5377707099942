"""Conversion of Magpie TTS releases: `.nemo` archives, with names and shapes as in NVIDIA's `MagpieTTSModel`.

The release is https://huggingface.co/nvidia/magpie_tts_multilingual_357m, and `--codec` the archive of
https://huggingface.co/nvidia/nemo-nano-codec-22khz-1.89kbps-21.5fps. Vectors that are added to a row of the decoder are
centred (minus the mean of their elements), so that the authors' LayerNorms, which have no biases, become RMS norms. The
local transformer's tables contain its input projection and its positions.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import prod
from operator import itemgetter
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stretto.errors import CheckpointError, InvalidRequest, shown
from stretto.family.conversion import (
    Contents,
    Converted,
    Release,
    Tokenizer,
    common_record,
    in_lower_case,
    merged,
)
from stretto.family.sections import Integer, NumLayers, Section, Size
from stretto.untrusted_files import parsed_json
from stretto.weights.loading import Part, Plan, Shape, require
from stretto_magpie.archive import CONFIG, IN_ARCHIVE, NemoArchive
from stretto_magpie.convert_codec import codec_network
from stretto_magpie.convert_text import read_texts
from stretto_magpie.family import (
    BIAS_COLUMNS,
    MAX_TEXT_TOKENS,
    NAME,
    NORM_EPS,
    EncoderSpec,
    LocalSpec,
    MagpieVocabulary,
    PriorSpec,
)

IS_BARE = True
EMBEDDINGS = "audio_embeddings.0.weight"
VOICES = "baked_context_embedding.weight"
MARKS = {VOICES: "Magpie TTS"}
# Names of tensors, and prefixes of names, that a release may have and the checkpoint does not need.
UNUSED = (
    *("_baked_embedding_T", "_baked_embedding_D", "baked_context_embedding_len"),
    *("context_encoder.", "context_text_embedding.", "alignment_encoder."),
)
NUM_SPECIAL = 8  # ids of a codebook after its codes
NUM_ENDS = 2  # ids of the beginning and the end of a text, after those of its tokens
NAMES = {"John": 0, "Sofia": 1, "Aria": 2, "Jason": 3, "Leo": 4}  # names in v2602, whose archive does not contain them
Fraction = Annotated[float, Field(gt=0, le=1)]
Layers = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 8)]], Field(min_length=1, max_length=1 << 8)]


class Stack(Section):
    """Hyperparameters of a stack of layers. Fields with defaults may be missing."""

    n_layers: NumLayers
    d_model: Size
    d_ffn: Size
    sa_n_heads: Size
    max_length_causal_mask: Integer = 4096
    apply_norm_out: Literal[True]
    use_learnable_pos_emb: Literal[True]
    use_moe: Literal[False] = False

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.d_model % self.sa_n_heads:
            raise InvalidRequest("sa_n_heads", f"a divisor of {self.d_model} (d_model)", self.sa_n_heads)
        return self


class Encoder(Stack):
    """Section `encoder`: the text encoder."""

    kernel_size: Annotated[int, Field(ge=1, le=31)]
    is_causal: bool = True


class Decoder(Stack):
    """Section `decoder`."""

    kernel_size: Literal[1]
    is_causal: Literal[True] = True
    has_xattn: Literal[True]
    xa_n_heads: Size
    xa_d_head: Size | None = None
    apply_norm_to_cond: Literal[True] = True


class Inference(Section):
    """Section `inference_parameters`, with the defaults of the authors' `ModelInferenceParameters`."""

    max_decoder_steps: Integer = 500
    temperature: Annotated[float, Field(ge=0, le=10)] = 0.7
    topk: Integer = 80
    cfg_scale: Annotated[float, Field(ge=0, le=20)] = 2.5
    min_generated_frames: Annotated[int, Field(ge=0, le=1 << 10)] = 4
    apply_attention_prior: bool = True
    attention_prior_epsilon: Fraction = 0.1
    attention_prior_lookahead_window: Annotated[int, Field(ge=1, le=1 << 10)] = 5
    estimate_alignment_from_layers: Layers | None = None
    apply_prior_to_layers: Layers | None = None
    start_prior_after_n_audio_steps: Literal[0] = 0
    ignore_finished_sentence_tracking: Literal[True] = True
    eos_detection_method: Literal["argmax_or_multinomial_any"] = "argmax_or_multinomial_any"

    def prior(self, num_layers: int) -> PriorSpec | None:
        """Return the prior for `num_layers` layers, or None if the release uses none."""
        every = range(num_layers)
        if not self.apply_attention_prior:
            return None
        return PriorSpec(
            epsilon=self.attention_prior_epsilon,
            window=self.attention_prior_lookahead_window,
            layers=tuple(every if self.apply_prior_to_layers is None else self.apply_prior_to_layers),
            read_layers=tuple(
                every if self.estimate_alignment_from_layers is None else self.estimate_alignment_from_layers
            ),
        )


class Config(Section):
    """`model_config.yaml` of a release."""

    model_type: Literal["decoder_ce"]
    embedding_dim: Size
    frame_stacking_factor: Annotated[int, Field(ge=1, le=8)] = 1
    use_bpe_char_tokenizer: Literal[False] = False
    encoder: Encoder
    decoder: Decoder
    local_transformer_type: Literal["autoregressive"]
    local_transformer_n_layers: NumLayers = 2
    local_transformer_n_heads: Size = 1
    local_transformer_hidden_dim: Size = 256
    inference_parameters: Inference = Inference()

    @model_validator(mode="after")
    def _check_widths(self) -> Self:
        for name, width in (("encoder", self.encoder.d_model), ("decoder", self.decoder.d_model)):
            if width != self.embedding_dim:
                raise InvalidRequest(f"{name}.d_model", f"{self.embedding_dim} (embedding_dim)", width)
        if self.local_transformer_hidden_dim % self.local_transformer_n_heads:
            expected = f"a divisor of {self.local_transformer_hidden_dim} (local_transformer_hidden_dim)"
            raise InvalidRequest("local_transformer_n_heads", expected, self.local_transformer_n_heads)
        return self

    @property
    def local(self) -> LocalSpec:
        hidden = self.local_transformer_hidden_dim
        heads = self.local_transformer_n_heads
        return LocalSpec(
            hidden=hidden,
            intermediate=4 * hidden,
            num_layers=self.local_transformer_n_layers,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=hidden // heads,
            eps=NORM_EPS,
            projection=None if hidden == self.embedding_dim else "plain",
        )


def own_tensors(release: Release) -> Mapping[str, Tensor]:
    """Return the tensors in the release's archive by name; see `Published.own_tensors`."""
    with NemoArchive(release.model) as archive:
        return archive.tensors()


def own_tokenizer(release: Release, tensors: Mapping[str, Tensor]) -> Tokenizer:
    """Return the release's tokenizers and dictionaries in our format; see `Published.own_tokenizer`."""
    with NemoArchive(release.model) as archive:
        texts = read_texts(archive.config(), archive.text)
    return Tokenizer(release.model.parent, texts["size"], built=texts)


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written."""
    with NemoArchive(release.model) as archive:
        record = archive.config()
        voices = voices_of(archive, record)
    assert contents.tokenizer.built is not None
    config = Config.read(record, CONFIG)
    if release.codec is None:
        raise CheckpointError("--codec: expected the .nemo archive of NanoCodec, got none")
    require(contents.tensors, {VOICES: (len(voices), None)})
    codec = codec_network(release.codec, config.frame_stacking_factor)
    vocabulary = replace(
        vocabulary_of(config, contents.tokenizer.built),
        num_codebooks=codec.record["num_groups"],
        codebook_size=prod(codec.record["num_levels_per_group"]),
        voices=voices,
        voice_rows=contents.tensors[VOICES].shape[1] // config.embedding_dim,
    )
    decoder = config.decoder
    written = {
        "architectures": ["StrettoLlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": decoder.d_model,
        "intermediate_size": decoder.d_ffn,
        "num_hidden_layers": decoder.n_layers,
        "num_attention_heads": decoder.sa_n_heads,
        "num_key_value_heads": decoder.sa_n_heads,
        "head_dim": decoder.d_model // decoder.sa_n_heads,
        "hidden_act": "silu",
        "max_position_embeddings": decoder.max_length_causal_mask,
        "rms_norm_eps": NORM_EPS,
        **common_record(NAME, vocabulary, vocabulary.layout.vocab_size, contents),
    }
    return Converted(written, plan(config, vocabulary), dropped(config), networks=(codec,))


def voices_of(archive: NemoArchive, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the voices' lower-case names by order of rows; raise CheckpointError unless numbered from 0 on."""
    file = config.get("speaker_map")
    if file is None:
        return tuple(in_lower_case(NAMES, CONFIG))
    name = str(file).removeprefix(IN_ARCHIVE)
    numbers = parsed_json(archive.text(name), f"{archive.path}: {name}")
    if sorted(map(str, numbers.values())) != sorted(map(str, range(len(numbers)))):
        raise CheckpointError(f"{archive.path}: {name}: expected numbers from 0 on by name, got {shown(numbers)}")
    return tuple(in_lower_case(dict(sorted(numbers.items(), key=itemgetter(1))), name))


def vocabulary_of(config: Config, texts: Mapping[str, Any]) -> MagpieVocabulary:
    """Return the vocabulary of a release, given the text record of `convert_text.read_texts`."""
    decoder = config.decoder
    inference = config.inference_parameters
    num_heads = decoder.xa_n_heads
    return MagpieVocabulary(
        num_text_ids=texts["size"] + NUM_ENDS,
        frames_per_row=config.frame_stacking_factor,
        languages=tuple(in_lower_case(texts["languages"], CONFIG)),
        max_text_tokens=min(MAX_TEXT_TOKENS, config.encoder.max_length_causal_mask),
        max_model_len=decoder.max_length_causal_mask,
        cross_heads=num_heads,
        cross_head_dim=decoder.xa_d_head or decoder.d_model // num_heads,
        hidden=config.embedding_dim,
        encoder=EncoderSpec(
            num_layers=config.encoder.n_layers,
            num_heads=config.encoder.sa_n_heads,
            intermediate=config.encoder.d_ffn,
            kernel_size=config.encoder.kernel_size,
            is_causal=config.encoder.is_causal,
        ),
        prior=inference.prior(decoder.n_layers),
        depth=config.local,
        temperature=inference.temperature,
        top_k=inference.topk,
        guidance_scale=inference.cfg_scale,
        min_frames=inference.min_generated_frames,
        max_frames=inference.max_decoder_steps,
    )


def dropped(config: Config) -> tuple[str, ...]:
    """Return the names of tensors that a release may have but the checkpoint does not need."""
    stacks = {"encoder": config.encoder.n_layers, "decoder": config.decoder.n_layers}
    stacks["local_transformer"] = config.local_transformer_n_layers
    layers = (f"{name}.layers.{at}" for name, num_layers in stacks.items() for at in range(num_layers))
    return (*(f"{layer}.self_attention.causal_mask" for layer in layers), *UNUSED)


def plan(config: Config, vocabulary: MagpieVocabulary) -> Plan:
    """Return the tensors to write, by published name."""
    return {
        **tables(config, vocabulary),
        **encoder_parts(config, vocabulary.num_text_ids),
        **decoder_parts(config),
        **local_parts(config),
    }


def centred(vectors: Tensor) -> Tensor:
    """Return vectors [n, H] minus the mean of their elements."""
    return (vectors.double() - vectors.double().mean(-1, keepdim=True)).to(vectors.dtype)


def centred_output(weight: Tensor) -> Tensor:
    """Return the weight [H, n] of a layer whose output has the mean 0."""
    return centred(weight.T).T.contiguous()


def as_matrix(weight: Tensor) -> Tensor:
    """Return the weight [N, H] of a convolution [N, H, 1] over one position."""
    return weight[:, :, 0]


def tables(config: Config, vocabulary: MagpieVocabulary) -> Plan:
    """Return the plan of the tables of codes and voices, and of the heads that detect the end."""
    width = config.embedding_dim
    size = vocabulary.codebook_size
    number = vocabulary.num_streams
    spec = vocabulary.depth
    num_ids = size + NUM_SPECIAL
    num_own = vocabulary.first_voice
    num_voice_rows = len(vocabulary.voices) * vocabulary.voice_rows
    codes = [f"audio_embeddings.{at}.weight" for at in range(number)]
    others: dict[str, Shape] = dict.fromkeys(codes[1:], (num_ids, width))
    projected: dict[str, Shape] = {}
    if spec.projection:
        projected = {
            "local_transformer_in_projection.weight": (spec.hidden, width),
            "local_transformer_in_projection.bias": (spec.hidden,),
        }
    positions = {"local_transformer.position_embeddings.weight": (number + 2, spec.hidden)}

    def rows_of_all_ids(*stored: Tensor) -> Tensor:
        *of_codes, of_voices = stored
        end = of_voices.new_zeros(1, width)
        rows = [of_voices.new_zeros(num_own, width), centred(of_voices.reshape(num_voice_rows, width))]
        for table in of_codes:
            averaged = centred(table / number)
            rows += [averaged[:size], end, averaged[size : size + 1]]
        return torch.cat(rows)

    def rows_of_codes(*stored: Tensor) -> Tensor:
        positions = stored[number]
        projection = stored[number + 1 :]
        rows = []
        for position, table in enumerate(stored[: number - 1], 1):
            row = table[:size].float()
            if projection:
                weight, bias = projection
                row = row @ weight.float().T + bias.float()
            rows.append(row + positions[position].float())
        return torch.cat(rows).to(stored[0].dtype)

    def start(positions: Tensor, *bias: Tensor) -> Tensor:
        return positions[0] + sum(bias)

    local = Part("depth.embed", (num_ids, width), rows_of_codes, others={**others, **positions, **projected})
    voices = {VOICES: (len(vocabulary.voices), vocabulary.voice_rows * width)}
    bias = {name: shape for name, shape in projected.items() if name.endswith("bias")}
    embeddings = Part(
        "model.embed_tokens.weight", (num_ids, width), rows_of_all_ids, also=(local,), others={**others, **voices}
    )
    sampled = [*range(size), size + 1]  # codes, and the end id, which follows the initial one

    def of_sampled(weight: Tensor) -> Tensor:
        return weight.unflatten(0, (number, num_ids))[:, sampled].flatten(0, 1)

    def heads(*layers: Tensor) -> Tensor:
        weights = torch.stack(layers[:number])[:, sampled]
        biases = torch.stack(layers[number:])[:, sampled, None]
        padding = weights.new_zeros(number, len(sampled), BIAS_COLUMNS - 1)
        return torch.cat([weights, biases, padding], 2)

    name = "local_transformer_out_projections"
    layers: dict[str, Shape] = {f"{name}.{at}.weight": (num_ids, spec.hidden) for at in range(number)}
    layers |= {f"{name}.{at}.bias": (num_ids,) for at in range(number)}
    parts = {
        codes[0]: embeddings,
        "local_transformer.position_embeddings.weight": Part(
            "depth.start", positions["local_transformer.position_embeddings.weight"], start, others=bias
        ),
        "final_proj.weight": Part("depth.first_head", (number * num_ids, width), of_sampled),
        "final_proj.bias": Part("depth.stop_bias", (number * num_ids,), of_sampled),
        **merged("depth.heads", heads, layers),
    }
    if spec.projection:
        weight = "local_transformer_in_projection.weight"
        parts[weight] = Part("depth.project.weight", projected[weight])
    return parts


def layer_shapes(stack: Stack, kernel_size: int) -> dict[str, Shape]:
    """Return the shapes of the tensors that a layer has in every stack, by published name."""
    width = stack.d_model
    return {
        "norm_self.weight": (width,),
        "self_attention.qkv_net.weight": (3 * width, width),
        "self_attention.o_net.weight": (width, width),
        "norm_pos_ff.weight": (width,),
        "pos_ff.proj.conv.weight": (stack.d_ffn, width, kernel_size),
        "pos_ff.o_net.conv.weight": (width, stack.d_ffn, kernel_size),
    }


def encoder_parts(config: Config, num_ids: int) -> Plan:
    """Return the tensors of the text encoder, which has embeddings of `num_ids` ids."""
    stack = config.encoder
    width = stack.d_model
    num_tokens = min(MAX_TEXT_TOKENS, stack.max_length_causal_mask)
    names = ("norm_self.weight", "attn_proj", "o_proj", "norm_mlp.weight", "conv_in", "conv_out")
    parts: Plan = {
        "text_embedding.weight": Part("conditions.embed", (num_ids, width)),
        "encoder.position_embeddings.weight": Part(
            "conditions.positions", (stack.max_length_causal_mask, width), lambda stored: stored[:num_tokens]
        ),
        "encoder.norm_out.weight": Part("conditions.norm.weight", (width,)),
    }
    for number in range(stack.n_layers):
        shapes = layer_shapes(stack, stack.kernel_size)
        for name, (published, shape) in zip(names, shapes.items(), strict=True):
            parts[f"encoder.layers.{number}.{published}"] = Part(f"conditions.layers.{number}.{name}", shape)
    return parts


def third(stored: Tensor, number: int) -> Tensor:
    """Return part `number` of a fused projection: 0 queries, 1 keys, 2 values."""
    return stored.chunk(3)[number]


def decoder_parts(config: Config) -> Plan:
    """Return the tensors of the decoder."""
    stack = config.decoder
    width = stack.d_model
    inner = stack.xa_n_heads * (stack.xa_d_head or width // stack.xa_n_heads)
    parts: Plan = {
        "decoder.position_embeddings.weight": Part(
            "model.layers.0.positions.weight", (stack.max_length_causal_mask, width), centred
        ),
        "decoder.norm_out.weight": Part("model.norm.weight", (width,)),
    }
    for number in range(stack.n_layers):
        ours = f"model.layers.{number}."
        shapes = layer_shapes(stack, 1)
        fused = shapes["self_attention.qkv_net.weight"]
        query, *others = (
            Part(f"{ours}self_attn.{letter}_proj.weight", fused, partial(third, number=at))
            for at, letter in enumerate("qkv")
        )
        of_layer = {
            "norm_self.weight": Part(f"{ours}input_layernorm.weight", (width,)),
            "self_attention.qkv_net.weight": Part(query.name, fused, query.edit, also=tuple(others)),
            "self_attention.o_net.weight": Part(f"{ours}self_attn.o_proj.weight", (width, width), centred_output),
            "norm_xattn_query.weight": Part(f"{ours}text_norm.weight", (width,)),
            "norm_xattn_memory.weight": Part(f"{ours}text_attn.memory_norm.weight", (width,)),
            "cross_attention.q_net.weight": Part(f"{ours}text_attn.query_proj.weight", (inner, width)),
            "cross_attention.kv_net.weight": Part(f"{ours}text_attn.memory_proj.weight", (2 * inner, width)),
            "cross_attention.o_net.weight": Part(f"{ours}text_attn.o_proj.weight", (width, inner), centred_output),
            "norm_pos_ff.weight": Part(f"{ours}post_attention_layernorm.weight", (width,)),
            "pos_ff.proj.conv.weight": Part(f"{ours}mlp.fc_in.weight", shapes["pos_ff.proj.conv.weight"], as_matrix),
            "pos_ff.o_net.conv.weight": Part(
                f"{ours}mlp.fc_out.weight",
                shapes["pos_ff.o_net.conv.weight"],
                lambda stored: centred_output(as_matrix(stored)),
            ),
        }
        parts |= {f"decoder.layers.{number}.{name}": planned for name, planned in of_layer.items()}
    return parts


def local_parts(config: Config) -> Plan:
    """Return the tensors of the local transformer's layers."""
    spec = config.local
    inner = spec.intermediate
    width = spec.hidden
    parts: Plan = {}
    for number in range(spec.num_layers):
        layer = f"local_transformer.layers.{number}."
        ours = f"depth.layers.{number}."
        parts |= {
            f"{layer}norm_self.weight": Part(f"{ours}ln_1.weight", (width,)),
            f"{layer}self_attention.qkv_net.weight": Part(f"{ours}attn_proj.weight", (3 * width, width)),
            f"{layer}self_attention.o_net.weight": Part(f"{ours}o_proj.weight", (width, width)),
            f"{layer}norm_pos_ff.weight": Part(f"{ours}ln_2.weight", (width,)),
            f"{layer}pos_ff.proj.conv.weight": Part(f"{ours}fc_in.weight", (inner, width, 1), as_matrix),
            f"{layer}pos_ff.o_net.conv.weight": Part(f"{ours}fc_out.weight", (width, inner, 1), as_matrix),
        }
    return parts
