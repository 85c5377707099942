"""Transformers' layout of Pocket TTS, Phonon and their codec, read under the authors' names and in their order.

`save_pretrained` writes queries, keys and values as three tensors, ordered for rotations that pair the halves of a
head. The authors have one tensor, ordered for rotations of adjacent pairs. The codec is in another folder.
"""

import re
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import Contents, Converted, Release, check_folded, integer
from stretto.untrusted_files import check_value, entry, json_object, released_file
from stretto.weights.loading import CONFIG_FILE, Part, Plan, TensorMismatch, check, open_tensors
from stretto_pocket.pocket_tts.convert import EMBEDDINGS, NUM_FREQUENCIES, Shape
from stretto_pocket.pocket_tts.convert import plan as pocket_plan

CODEC_TYPE = "pocket_tts_audio_tokenizer"
TABLE = "model.embed_tokens.weight"
QUERIES = "self_attn.q_proj.weight"
GENERATION_FILE = "generation_config.json"
END_THRESHOLD = -4.0  # default if generation_config.json does not state it
# Fields of `speech_sampling` by generation_config.json key.
GENERATION = {"temperature": ("audio.temperature",), "do_sample": ("audio.temperature",)}
DROPPED = ("loss_weighting.", "latent_stats_num_updates")  # for training only
# The authors' beginnings of tensor names, and transformers'; `#` is a number, at most one. The first that fits applies.
STACK = (
    ("self_attn.in_proj.", "self_attn.q_proj."),
    ("self_attn.out_proj.", "self_attn.o_proj."),
    ("linear1.", "mlp.fc1."),
    ("linear2.", "mlp.fc2."),
    ("norm1.", "input_layernorm."),
    ("norm2.", "post_attention_layernorm."),
    ("layer_scale_1.", "self_attn_layer_scale."),
    ("layer_scale_2.", "mlp_layer_scale."),
)
STACKS = (
    ("flow_lm.transformer.layers.#.", "model.layers.#."),
    ("mimi.decoder_transformer.transformer.layers.#.", "decoder.decoder_transformer.layers.#."),
    ("mimi.encoder_transformer.transformer.layers.#.", "encoder.encoder_transformer.layers.#."),
)
NAMES = (
    *((f"{authors}{one}", f"{ours}{other}") for authors, ours in STACKS for one, other in STACK),
    ("flow_lm.input_linear.", "model.audio_latent_proj."),
    ("flow_lm.bos_emb", "model.bos_latent"),
    ("flow_lm.emb_mean", "latent_mean"),
    ("flow_lm.emb_std", "latent_std"),
    ("flow_lm.out_norm.", "model.norm."),
    ("flow_lm.out_eos.", "eos_head."),
    ("flow_lm.flow_net.time_embed.#.freqs", "flow_head.timestep_embeddings.#.freqs"),
    ("flow_lm.flow_net.time_embed.#.mlp.0.", "flow_head.timestep_embeddings.#.fc1."),
    ("flow_lm.flow_net.time_embed.#.mlp.2.", "flow_head.timestep_embeddings.#.fc2."),
    ("flow_lm.flow_net.time_embed.#.mlp.3.alpha", "flow_head.timestep_embeddings.#.norm.weight"),
    ("flow_lm.flow_net.cond_embed.", "flow_head.cond_proj."),
    ("flow_lm.flow_net.input_proj.", "flow_head.input_proj."),
    ("flow_lm.flow_net.res_blocks.#.in_ln.", "flow_head.layers.#.norm."),
    ("flow_lm.flow_net.res_blocks.#.mlp.0.", "flow_head.layers.#.fc1."),
    ("flow_lm.flow_net.res_blocks.#.mlp.2.", "flow_head.layers.#.fc2."),
    ("flow_lm.flow_net.res_blocks.#.adaLN_modulation.1.", "flow_head.layers.#.adaln_proj."),
    ("flow_lm.flow_net.final_layer.linear.", "flow_head.final_layer.proj."),
    ("flow_lm.flow_net.final_layer.adaLN_modulation.1.", "flow_head.final_layer.adaln_proj."),
    ("mimi.quantizer.output_proj.", "latent_proj."),
    ("mimi.upsample.convtr.convtr.", "decoder.upsample.conv."),
    ("mimi.downsample.conv.conv.", "encoder.downsample.conv."),
    ("mimi.decoder.model.#.", "decoder.decoder_seanet.layers.#."),
    ("mimi.encoder.model.#.", "encoder.encoder_seanet.layers.#."),
)
Names = tuple[tuple[str, str], ...]
Parts = Mapping[str, tuple[str, Callable[[Tensor], Tensor]]]
STATISTICS = ("latent_mean", "latent_std", "flow_lm.emb_mean", "flow_lm.emb_std")  # statistics of the codec's latents
NUMBERS = (  # fields of the codec's config.json
    *(
        "sampling_rate",
        "num_filters",
        "kernel_size",
        "residual_kernel_size",
        "last_kernel_size",
        "dilation_growth_rate",
    ),
    *("compress", "num_hidden_layers", "intermediate_size", "sliding_window", "latent_stride"),
)
EXPECTED: dict[str, Any] = {  # supported values of a language model's config.json
    "layer_norm_eps": 1e-5,
    "attention_bias": False,
    "flow_head_config.layer_norm_eps": 1e-6,
    "flow_head_config.rms_norm_eps": 1e-5,
    "flow_head_config.hidden_act": "silu",
    "flow_head_config.frequency_embedding_size": 2 * NUM_FREQUENCIES,
}
CODEC_EXPECTED: dict[str, Any] = {
    "model_type": CODEC_TYPE,
    "audio_channels": 1,
    "num_residual_layers": 1,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "trim_right_ratio": 1.0,
    "use_conv_shortcut": False,
    "hidden_act": "gelu_pytorch_tanh",
    "norm_eps": 1e-5,
    "attention_bias": False,
}


def renamed(name: str, names: Names) -> str:
    """Replace a name's first prefix in `names` by its counterpart, if it has one."""
    for one, other in names:
        if match := re.match(re.escape(one).replace(r"\#", r"(\d+)"), name):
            return other.replace("#", match[1] if match.groups() else "#") + name[match.end() :]
    return name


class AuthorsTensors(Mapping[str, Tensor]):
    """Tensors in transformers' layout under the authors' names, read on access. Other tensors keep their names.

    Args:
        stored: Tensors by transformers' name.
        names: Pairs of prefixes: of the authors' names and of transformers'.
        head_dims: Width of a head by the first component of a name.
        parts: For each authors' name of a part of a stored tensor, the name of that tensor, and the function that
            reads the part.
    """

    def __init__(
        self,
        stored: Mapping[str, Tensor],
        names: Names,
        head_dims: Mapping[str, int],
        parts: Parts,
    ):
        self._stored = stored
        self._names = names
        self._head_dims = head_dims
        self._parts = parts
        back = tuple((other, one) for one, other in names)
        others = {other for name in stored if name.endswith(QUERIES) for other in keys_and_values(name)}
        self._sources = {renamed(name, back): name for name in stored if name not in others}
        self._sources |= {name: source for name, (source, _) in parts.items() if source in stored}

    def source(self, name: str) -> str:
        """Return transformers' name for an authors' name, even if there is no such tensor."""
        return self._sources.get(name) or renamed(name, self._names)

    def __getitem__(self, name: str) -> Tensor:
        source = self._sources[name]
        if source.endswith(QUERIES):
            return self._fused(source)
        stored = self._stored[source]
        return self._parts[name][1](stored) if name in self._parts else stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def _fused(self, query: str) -> Tensor:
        """Return queries, keys and values as one tensor [n, H], ordered for rotations of adjacent pairs."""
        head_dim = self._head_dims[query.partition(".")[0]]
        key, value = keys_and_values(query)
        rotated = [in_pairs(self._stored[name], head_dim) for name in (query, key)]
        return torch.cat([*rotated, self._stored[value]])


def keys_and_values(query: str) -> tuple[str, str]:
    return query.replace(".q_proj.", ".k_proj."), query.replace(".q_proj.", ".v_proj.")


def in_pairs(rows: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows [n, H] of a projection from halves of each head to adjacent pairs."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


class TransformersRelease:
    """Language model and codec in transformers' layout; a missing codec or value raises CheckpointError.

    Args:
        activation: `hidden_act` of the language model.
        names: Pairs of prefixes: of the family's names by the authors, and of transformers'.
        parts: See `AuthorsTensors`.

    Attributes:
        end_threshold: Logit above which speech ends.
        tensors: Tensors of both under the authors' names.
    """

    def __init__(self, release: Release, contents: Contents, activation: str, names: Names, parts: Parts):
        if release.codec is None:
            expected = f"the folder of a {CODEC_TYPE}, which transformers' layout has in another repository"
            raise CheckpointError(f"--codec: expected {expected}, got none")
        self.config = contents.config
        self._folder = release.codec
        check_values(self.config, EXPECTED | {"hidden_act": activation}, CONFIG_FILE)
        self.head_dim = integer(self.config, "head_dim")
        self.theta = rope_theta(self.config)
        self._codec_config = read_codec_config(release.codec, integer(self.config, "latent_dim"))
        generation = release.folder / GENERATION_FILE
        generation_config = json_object(released_file(release.folder, GENERATION_FILE)) if generation.exists() else {}
        self.end_threshold = number(generation_config, "eos_threshold", END_THRESHOLD)
        self.num_steps = number(generation_config, "num_flow_steps", 1)
        self._codec = open_tensors(release.codec)
        self._stored: Mapping[str, Tensor] = ChainMap(*cast(Any, (self._codec, contents.tensors)))
        codec_head = self._codec_config["hidden_size"] // self._codec_config["num_attention_heads"]
        head_dims = {"model": self.head_dim, "encoder": codec_head, "decoder": codec_head}
        held = integer(self.config, "num_key_value_heads") * self.head_dim
        self._kv_widths = {"model": held} | dict.fromkeys(("encoder", "decoder"), self._codec_config["hidden_size"])
        upsampling = range(2, 2 + 3 * len(self._codec_config["upsampling_ratios"]), 3)
        decoder = [
            (f"mimi.decoder.model.{at}.convtr.", f"decoder.decoder_seanet.layers.{at}.conv.") for at in upsampling
        ]
        self.tensors = AuthorsTensors(self._stored, (*names, *decoder, *NAMES), head_dims, parts)

    def flow_type(self) -> str:
        flow_type = entry(self.config, "flow_head_config.flow_type", CONFIG_FILE)
        if flow_type not in ("lsd", "drifting"):
            raise CheckpointError(
                f"config.json: flow_head_config.flow_type: expected lsd or drifting, got {shown(flow_type)}"
            )
        return str(flow_type)

    def mimi(self) -> dict[str, Any]:
        """Return section `mimi` of the YAML file of a Pocket TTS release with the same codec."""
        codec = self._codec_config
        width = codec["hidden_size"]
        num_words = codec["latent_dim"]
        frame = prod(codec["upsampling_ratios"]) * codec["latent_stride"]
        return {
            "sample_rate": codec["sampling_rate"],
            "frame_rate": codec["sampling_rate"] / frame,
            "inner_dim": num_words,
            "seanet": {
                "channels": 1,
                "dimension": width,
                "n_filters": codec["num_filters"],
                "n_residual_layers": codec["num_residual_layers"],
                "ratios": codec["upsampling_ratios"],
                "kernel_size": codec["kernel_size"],
                "residual_kernel_size": codec["residual_kernel_size"],
                "last_kernel_size": codec["last_kernel_size"],
                "dilation_base": codec["dilation_growth_rate"],
                "compress": codec["compress"],
            },
            "transformer": {
                "d_model": width,
                "num_heads": codec["num_attention_heads"],
                "num_layers": codec["num_hidden_layers"],
                "dim_feedforward": codec["intermediate_size"],
                "context": codec["sliding_window"],
                "max_period": rope_theta(codec, str(self._folder / CONFIG_FILE)),
                "input_dimension": width,
                "output_dimensions": [width],
            },
            "quantizer": {"dimension": num_words, "output_dimension": width},
        }

    def check_language_model(self, config: Mapping[str, Any], folded: Mapping[str, tuple[int, ...]]) -> None:
        """Check the tensors that the authors' converter reads, so that errors have transformers' names.

        Args:
            config: Contents of the YAML file of a Pocket TTS release with the same sizes.
            folded: Shapes of tensors that are merged into others, by the authors' names.
        """
        shape = Shape(config)
        parts = pocket_plan(shape, self.tensors, {}, clones=False)
        del parts[EMBEDDINGS]  # the name of Pocket TTS, not of Phonon
        plan, merged = self._renamed(parts)
        shapes = {name: tensor.stored for name, tensor in plan.items()} | merged
        others = {"flow_lm.bos_emb": (shape.num_words,), **folded}
        check_folded(self._stored, shapes | {self.tensors.source(name): size for name, size in others.items()})

    def renamed(self, converted: Converted, dropped: tuple[str, ...]) -> Converted:
        """Return the result of the authors' converter, with transformers' names for the tensors to be read.

        Args:
            converted: Checkpoint to be written, made with `tensors`.
            dropped: Names, or prefixes of names, of unused tensors of the language model.
        """
        (codec,) = converted.networks
        plan, folded = self._renamed(converted.plan)
        parts, others = self._renamed(codec.plan)
        check_folded(self._stored, folded)
        expected = {name: tensor for name, tensor in parts.items() if name not in STATISTICS}
        expected |= {name: Part(name, shape) for name, shape in others.items()}
        try:
            check(expected, self._codec, () if codec.record["has_encoder"] else ("encoder.",))
        except TensorMismatch as error:
            raise CheckpointError(f"{self._folder}: {error}") from error
        network = replace(codec, plan=parts, tensors=self._stored)
        merged = (*folded, *(self.tensors.source(name) for name in converted.folded))
        return replace(converted, plan=plan, dropped=(*DROPPED, *dropped), folded=merged, networks=(network,))

    def _renamed(self, plan: Plan) -> tuple[Plan, dict[str, tuple[int, ...]]]:
        """Return a plan by transformers' names, and the shapes of keys and values that are merged with queries."""
        plan_of_ours: Plan = {}
        merged: dict[str, tuple[int, ...]] = {}
        for name, tensor in plan.items():
            source = self.tensors.source(name)
            stored = tensor.stored
            if source.endswith(QUERIES):
                rows, width = stored
                held = self._kv_widths[source.partition(".")[0]]
                merged |= dict.fromkeys(keys_and_values(source), (held, width))
                stored = (rows - 2 * held, width)
            elif source == TABLE:
                stored = (integer(self.config, "vocab_size"), *stored[1:])
            is_same = stored == tensor.stored
            plan_of_ours[source] = (
                tensor if is_same else replace(tensor, stored=stored, edit=self._reader(name, tensor))
            )
        return plan_of_ours, merged

    def _reader(self, name: str, tensor: Part) -> Callable[[Tensor], Tensor]:
        """Return the edit that reads the authors' tensor `name` from a stored tensor."""

        def edit(stored: Tensor) -> Tensor:
            whole = stored.new_empty(tensor.stored) if stored.is_meta else self.tensors[name]
            return whole if tensor.edit is None else tensor.edit(whole)

        return edit


def read_codec_config(folder: Path, num_words: int) -> dict[str, Any]:
    """Return the codec's config.json; raise CheckpointError unless latents have `num_words` elements."""
    path = folder / CONFIG_FILE
    codec = json_object(released_file(folder, CONFIG_FILE))
    check_values(codec, CODEC_EXPECTED, str(path))
    width, heads = (integer(codec, name, file=str(path)) for name in ("hidden_size", "num_attention_heads"))
    same = {"num_key_value_heads": heads, "head_dim": width // heads, "upsample_groups": width, "latent_dim": num_words}
    check_values(codec, same, str(path))
    for name in NUMBERS:
        integer(codec, name, file=str(path))
    ratios = codec.get("upsampling_ratios")
    if not isinstance(ratios, list) or not all(type(ratio) is int and 0 < ratio < 1 << 10 for ratio in ratios):
        raise CheckpointError(f"{path}: upsampling_ratios: expected a list of positive integers, got {shown(ratios)}")
    return codec


def check_values(config: Mapping[str, Any], expected: Mapping[str, Any], file: str) -> None:
    """Raise CheckpointError if the value at a dotted path of a config is missing or not the expected one."""
    for path, value in expected.items():
        check_value(path, entry(config, path, file), value, file=file)


def number(generation: Mapping[str, Any], name: str, default: float) -> float:
    """Return a number of generation_config.json, or `default` if it is missing."""
    value = default if generation.get(name) is None else generation[name]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise CheckpointError(f"{GENERATION_FILE}: {name}: expected a number, got {shown(value)}")
    return value


def rope_theta(config: Mapping[str, Any], file: str = CONFIG_FILE) -> float:
    """Return the base of the rotary frequencies."""
    check_values(config, {"rope_parameters.rope_type": "default"}, file)
    theta = entry(config, "rope_parameters.rope_theta", file)
    if not isinstance(theta, int | float) or not 0 < theta <= 1e9:
        raise CheckpointError(f"{file}: rope_parameters.rope_theta: expected a positive number, got {shown(theta)}")
    return float(theta)
