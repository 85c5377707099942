"""Conversion of VoxCPM2 releases: names and shapes as published by OpenBMB.

https://huggingface.co/openbmb/VoxCPM2: `config.json`, `model.safetensors`, a tokenizer, and the codec as
`audiovae.safetensors` or `audiovae.pth`. The muP factors are multiplied into the weights, in float32. The codec's
weight norms are folded. Its conditioning on the output sample rate becomes a scale and an offset per block.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import Contents, Converted, Network, Release, common_record, weight_normed
from stretto.untrusted_files import entry, released_file
from stretto.weights.loading import Part, Plan, check_shapes, in_float32, open_tensors, shapes_read
from stretto_voxcpm2.audiovae import DEFAULTS, MODEL_TYPE, AudioVaeConfig, codec_shapes, published_names
from stretto_voxcpm2.family import NAME, VoxCpmVocabulary

IS_BARE = True  # the tokenizer may be of any kind
IS_FLOAT32 = True
EMBEDDINGS = "base_lm.embed_tokens.weight"
MARKS = {"base_lm.embed_tokens.weight": "VoxCPM2"}
MAX_MODEL_LEN = 4096  # over ten minutes of speech; a table stores the latents for all positions of all requests
CODEC_FILES = ("audiovae.safetensors", "audiovae.pth")
# Published names, by our names, of modules whose linear layers keep their shapes.
LINEAR = {
    "model.bottleneck.enter": "fsq_layer.in_proj",
    "model.bottleneck.leave": "fsq_layer.out_proj",
    "model.fusion": "fusion_concat_proj",
    "model.to_head": "lm_to_dit_proj",
    "model.residual_to_head": "res_to_dit_proj",
    "model.stop": "stop_proj",
    "patches.enter": "feat_encoder.in_proj",
    "patches.leave": "enc_to_lm_proj",
    "head.enter": "feat_decoder.estimator.in_proj",
    "head.condition": "feat_decoder.estimator.cond_proj",
    "head.leave": "feat_decoder.estimator.out_proj",
    **{
        f"head.{ours}.{layer}": f"feat_decoder.estimator.{name}.linear_{number}"
        for ours, name in (("time", "time_mlp"), ("time_step", "delta_time_mlp"))
        for number, layer in enumerate(("enter", "leave"), 1)
    },
}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including the codec from the release folder."""
    if not contents.config:
        raise CheckpointError("--config: expected the release's config.json, got none")
    shape = Shape(contents.config)
    contents.check_latent_model(shape.num_tokens)
    vocab = VoxCpmVocabulary(shape.num_tokens, shape.num_latents, shape.num_numbers, shape.max_model_len)
    record = {
        "architectures": ["StrettoVoxCpmForCausalLM"],
        "model_type": "llama",
        **shape.numbers,
        **common_record(NAME, vocab, vocab.vocab_size, contents),
    }
    network = codec_network(release.folder, contents.config.get("audio_vae_config") or {}, shape)
    return Converted(record, plan(shape, vocab), (), (), (network,))


class Shape:
    """Model hyperparameters, read from a release's config.json."""

    def __init__(self, config: Mapping[str, Any]):
        lm, self.encoder, self.head = (entry(config, name) for name in ("lm_config", "encoder_config", "dit_config"))
        if config.get("architecture", NAME) != NAME:
            raise CheckpointError(f"architecture: expected {NAME}, got {shown(config['architecture'])}")
        if self.head.get("dit_mean_mode"):
            raise CheckpointError("dit_config.dit_mean_mode: expected false, got true")
        if lm.get("no_rope") or not config.get("residual_lm_no_rope"):
            got = f"{shown(lm.get('no_rope', False))} and {shown(config.get('residual_lm_no_rope'))}"
            raise CheckpointError(f"no_rope, residual_lm_no_rope: expected false and true, got {got}")
        self.width = size(lm, "hidden_size")
        self.inner = size(lm, "intermediate_size")
        self.heads = size(lm, "num_attention_heads")
        self.kv_heads = size(lm, "num_key_value_heads")
        self.head_dim = lm.get("kv_channels") or self.width // self.heads
        self.num_layers = size(lm, "num_hidden_layers")
        self.num_residual = size(config, "residual_lm_num_layers")
        self.num_tokens = size(lm, "vocab_size")
        self.num_latents = size(config, "patch_size")
        self.num_numbers = size(config, "feat_dim")
        self.narrow = size(config, "scalar_quantization_latent_dim")
        self.max_model_len = min(size(config, "max_length"), MAX_MODEL_LEN)
        is_scaled = lm.get("use_mup", True)
        self.embedding_scale = float(entry(lm, "scale_emb")) if is_scaled else 1.0
        self.depth_scale = float(entry(lm, "scale_depth")) if is_scaled else None
        for name, network in (("encoder_config", self.encoder), ("dit_config", self.head)):
            head_dim = network.get("kv_channels") or size(network, "hidden_dim") // size(network, "num_heads")
            if head_dim != self.head_dim:
                raise CheckpointError(f"{name}: expected {self.head_dim} channels per head, got {head_dim}")
        self.numbers = {
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.num_layers + self.num_residual,
            "num_residual_layers": self.num_residual,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "rms_norm_eps": entry(lm, "rms_norm_eps"),
            "max_position_embeddings": self.max_model_len,
            "long_rope": long_rope(lm, self.head_dim),
            "bottleneck": {"width": self.narrow, "scale": size(config, "scalar_quantization_scale")},
            "encoder": local_numbers(self.encoder),
            "head": local_numbers(self.head),
        }

    def branch_scale(self, num_layers: int) -> float:
        """Return the factor by which each residual branch in a stack of layers is scaled."""
        return 1.0 if self.depth_scale is None else self.depth_scale / math.sqrt(num_layers)


def size(record: Mapping[str, Any], name: str) -> int:
    """Return the positive integer `name` in a record; raise CheckpointError for anything else."""
    value = entry(record, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{name}: expected a positive integer, got {shown(value)}")
    return value


def long_rope(lm: Mapping[str, Any], head_dim: int) -> dict[str, Any]:
    """Return the base, frequency divisors and scale of the rotary embedding that the authors' LongRoPE chooses."""
    scaling = entry(lm, "rope_scaling")
    longest = size(lm, "max_position_embeddings")
    original = size(scaling, "original_max_position_embeddings")
    name = "long_factor" if longest > original else "short_factor"
    factors = [float(factor) for factor in entry(scaling, name)]
    if len(factors) != head_dim // 2:
        raise CheckpointError(f"rope_scaling.{name}: expected {head_dim // 2} numbers, got {len(factors)}")
    scale = math.sqrt(1 + math.log(longest / original) / math.log(original))
    return {"theta": float(entry(lm, "rope_theta")), "factors": factors, "scale": scale}


def local_numbers(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the sizes of the patch encoder or the diffusion head."""
    names = {"width": "hidden_dim", "inner": "ffn_dim", "num_heads": "num_heads", "num_layers": "num_layers"}
    return {ours: size(config, name) for ours, name in names.items()}


def plan(shape: Shape, vocab: VoxCpmVocabulary) -> Plan:
    """Return the tensors to write, by published name."""
    parts: Plan = {}

    def add(name: str, ours: str, *stored: int, edit: Callable[[Tensor], Tensor] | None = None) -> None:
        parts[name] = Part(ours, stored, edit)

    def embeddings(stored: Tensor) -> Tensor:
        table = stored.float() * shape.embedding_scale
        return torch.cat([table, table.new_zeros(vocab.vocab_size - vocab.num_text_ids, shape.width)])

    add(EMBEDDINGS, "model.embed_tokens.weight", shape.num_tokens, shape.width, edit=embeddings)
    width = shape.width
    numbers = shape.num_numbers
    narrow = shape.narrow
    inside, outside = (size(network, "hidden_dim") for network in (shape.encoder, shape.head))
    shapes = {
        "model.bottleneck.enter": (narrow, width),
        "model.bottleneck.leave": (width, narrow),
        "model.fusion": (width, 2 * width),
        "model.to_head": (outside, width),
        "model.residual_to_head": (outside, width),
        "model.stop": (width, width),
        "patches.enter": (inside, numbers),
        "patches.leave": (width, inside),
        "head.enter": (outside, numbers),
        "head.condition": (outside, numbers),
        "head.leave": (numbers, outside),
    }
    for ours, name in LINEAR.items():
        rows, columns = shapes.get(ours, (outside, outside))
        add(f"{name}.weight", f"{ours}.weight", rows, columns)
        add(f"{name}.bias", f"{ours}.bias", rows)
    special = "feat_encoder.special_token"
    add(special, "patches.special_token", 1, 1, 1, inside, edit=lambda stored: stored.flatten())
    # Speech ends when the second logit is the larger one.
    add("stop_head.weight", "end_of_speech.weight", 2, width, edit=lambda stored: stored[1] - stored[0])
    base = LayerNames("base_lm.layers", "model.layers", range(shape.num_layers))
    residual = range(shape.num_layers, shape.num_layers + shape.num_residual)
    add_layers(shape, base, (width, shape.inner, shape.heads), add)
    add_layers(
        shape, LayerNames("residual_lm.layers", "model.layers", residual), (width, shape.inner, shape.heads), add
    )
    add("base_lm.norm.weight", "model.norm.weight", width)
    add("residual_lm.norm.weight", "model.residual_norm.weight", width)
    for name, ours, config in (
        ("feat_encoder.encoder", "patches.transformer", shape.encoder),
        ("feat_decoder.estimator.decoder", "head.transformer", shape.head),
    ):
        local = local_numbers(config)
        names = LayerNames(f"{name}.layers", f"{ours}.layers", range(local["num_layers"]))
        add_layers(shape, names, (local["width"], local["inner"], local["num_heads"]), add)
        add(f"{name}.norm.weight", f"{ours}.norm.weight", local["width"])
    return parts


class LayerNames:
    """Layer names in a stack: the published prefix, our prefix, and our layer numbers."""

    def __init__(self, published: str, ours: str, numbers: range):
        self.published = published
        self.ours = ours
        self.numbers = numbers


def add_layers(shape: Shape, names: LayerNames, numbers: tuple[int, int, int], add: Callable[..., None]) -> None:
    """Add the tensors of a stack of layers. `numbers` contains its width, inner width and number of heads."""
    width, inner, heads = numbers
    queried = heads * shape.head_dim
    held = shape.kv_heads * shape.head_dim
    scale = shape.branch_scale(len(names.numbers))
    edit = None if scale == 1.0 else (lambda stored: stored.float() * scale)
    for index, number in enumerate(names.numbers):
        name = f"{names.published}.{index}."
        ours = f"{names.ours}.{number}."
        for norm, rows in (("q", queried), ("k", held), ("v", held)):
            add(f"{name}self_attn.{norm}_proj.weight", f"{ours}self_attn.{norm}_proj.weight", rows, width)
        add(f"{name}self_attn.o_proj.weight", f"{ours}self_attn.o_proj.weight", width, queried, edit=edit)
        for norm in ("gate", "up"):
            add(f"{name}mlp.{norm}_proj.weight", f"{ours}mlp.{norm}_proj.weight", inner, width)
        add(f"{name}mlp.down_proj.weight", f"{ours}mlp.down_proj.weight", width, inner, edit=edit)
        for norm in ("input", "post_attention"):
            add(f"{name}{norm}_layernorm.weight", f"{ours}{norm}_layernorm.weight", width)


def codec_network(folder: Path, vae: Mapping[str, Any], shape: Shape) -> Network:
    """Return the codec in a release folder; raise CheckpointError if a file or tensor is missing or does not fit."""
    config = AudioVaeConfig.from_record(vae, shape.num_latents)
    if config.num_numbers != shape.num_numbers:
        raise CheckpointError(f"audio_vae_config.latent_dim: expected {shape.num_numbers}, got {config.num_numbers}")
    tensors = read_codec(folder)
    parts = codec_plan(config)
    shapes = shapes_read(parts)
    mean = "encoder.fc_mu"
    unused = {
        name.replace(mean, "encoder.fc_logvar"): stored
        for name, stored in shapes.items()
        if name.startswith(f"{mean}.")
    }
    table = "decoder.sr_bin_boundaries"
    check_shapes(shapes | unused | {table: (len(config.boundaries),)}, tensors, ())
    if (boundaries := tensors[table].int().tolist()) != list(config.boundaries):
        raise CheckpointError(f"{table}: expected {list(config.boundaries)}, got {boundaries}")
    record = {"model_type": MODEL_TYPE, "patch_size": shape.num_latents, "audio_vae_config": DEFAULTS | dict(vae)}
    return Network("codec", record, parts, tensors)


def read_codec(folder: Path) -> dict[str, Tensor]:
    """Return the codec's tensors in a release folder, in float32; like the authors' code, prefer safetensors."""
    name = next((name for name in CODEC_FILES if (folder / name).exists()), None)
    if name is None:
        raise CheckpointError(f"{folder}: expected the codec as {' or '.join(CODEC_FILES)}, got neither")
    path = released_file(folder, name)
    return in_float32(open_tensors(path), path)


def codec_plan(config: AudioVaeConfig) -> Plan:
    """Return the codec tensors to write, by published name."""
    names = published_names(config)
    num_classes = len(config.boundaries) + 1
    rate_class = bisect_left(config.boundaries, config.sample_rate)
    parts: Plan = {}
    for ours, written in codec_shapes(config).items():
        layer, _, tensor = ours.rpartition(".")
        published = names[layer]
        if tensor == "weight":
            norms = {f"{published}.weight_g": (written[0], *(1 for _ in written[1:]))}
            parts[f"{published}.weight_v"] = Part(ours, written, weight_normed, others=norms)
        elif tensor in ("scale", "offset"):
            table = f"{published}.{'scale' if tensor == 'scale' else 'bias'}_embed.weight"
            parts[table] = Part(ours, (num_classes, *written), lambda stored: stored[rate_class])
        elif tensor == "alpha":
            parts[f"{published}.alpha"] = Part(ours, (1, *written), lambda stored: stored[0])
        else:
            parts[f"{published}.{tensor}"] = Part(ours, written)
    return parts
