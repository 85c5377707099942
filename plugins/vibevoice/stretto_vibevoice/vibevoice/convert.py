"""Conversion of the VibeVoice 1.5B and 7B releases, in transformers format or the authors' format.

https://huggingface.co/vibevoice/VibeVoice-1.5B-hf: `config.json`, `model*.safetensors`, `tokenizer.json`. The acoustic
decoder is written twice: for the codec, and for the model, which decodes its own frames. Only four rows of an untied
head are kept. https://huggingface.co/microsoft/VibeVoice-1.5B has the same tensors under other names, another
config.json, and no tokenizer, because it uses the Qwen2.5 tokenizer.
"""

import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import Qwen2Config

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import Contents, Converted, Network, Release, Tokenizer, common_record
from stretto.family.layers import layers_plan
from stretto.family.sections import Epsilon, NumLayers, Section, Size
from stretto.untrusted_files import check_value, entry
from stretto.weights.backbones import LLAMA_NUMBERS, check_heads, read_numbers, shapes
from stretto.weights.loading import Part, Plan
from stretto_vibevoice.codec import (
    MODEL_TYPE,
    PARTS,
    SAMPLE_RATE,
    Decoder,
    Encoder,
    TokenizerConfig,
    codec_shapes,
    published_name,
)
from stretto_vibevoice.vibevoice.family import FRAME_RATE, NAME, VibeVoiceVocabulary

IS_FLOAT32 = True
EMBEDDINGS = "model.language_model.embed_tokens.weight"
MARKS = {"model.latent_scaling_factor": "VibeVoice", "model.speech_scaling_factor": "VibeVoice"}
MAX_SIZE = 1 << 20  # maximum size in the diffusion head
MAX_MODEL_LEN = 8192  # 18 minutes; a table stores the latents for all positions of all requests
SCALES = ("latent_scaling_factor", "latent_bias_factor")
HEAD: dict[str, Any] = {  # required settings of the diffusion head
    "hidden_act": "silu",
    "frequency_embedding_size": 256,
    "diffusion_max_period": 10000,
    "mlp_bias": False,
}
REALTIME = "tts_backbone_num_hidden_layers"


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, with the acoustic tokenizer in a separate folder."""
    check_kind(contents.config)
    is_authors = AUTHORS in contents.config
    config = contents.config
    name_of: Callable[[str], str] = authors_name if is_authors else str
    if is_authors:
        config = from_authors(config, contents.tokenizer)
    shape = Shape(config)
    contents.check_latent_model(shape.num_tokens)
    scales = {name: scale(contents.tensors, name_of(f"model.{name}")) for name in SCALES}
    vocabulary = shape.vocabulary
    sections = {name: dict(entry(config, name)) for name in (PARTS, SEMANTIC)}
    record = {
        "architectures": ["StrettoVibeVoiceForCausalLM"],
        **shape.llama,
        "max_position_embeddings": vocabulary.max_model_len,
        "diffusion_head": shape.head,
        "tokenizers": {"acoustic": sections[PARTS], "semantic": sections[SEMANTIC], **scales},
        **common_record(NAME, vocabulary, vocabulary.vocab_size, contents),
    }
    codec = {"model_type": MODEL_TYPE, PARTS: sections[PARTS], **scales}
    parts: Plan = {
        name_of(f"model.audio_tower.{published_name(name)}"): Part(name, stored)
        for name, stored in codec_shapes(shape.acoustic).items()
    }
    is_second = shape.is_tied and "lm_head.weight" in contents.tensors
    return Converted(
        record,
        {name_of(name): tensor for name, tensor in plan(shape).items()},
        ("lm_head.weight",) if is_second else (),
        tuple(name_of(f"model.{name}") for name in SCALES),
        (Network("codec", codec, parts),),
    )


SEMANTIC = "semantic_model_config"


def check_kind(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless config.json belongs to a 1.5B or 7B release."""
    model_type = config.get("model_type")
    if REALTIME in config or model_type == "vibevoice_streaming":
        raise CheckpointError("expected VibeVoice 1.5B or 7B, got VibeVoice Realtime 0.5B: convert vibevoice-realtime")
    check_value("model_type", model_type, "vibevoice")


AUTHORS = "acoustic_tokenizer_config"  # key in a config.json in the authors' format
AUTHORS_SEMANTIC = "semantic_tokenizer_config"
IDS = {  # tokens in the authors' tokenizer, by key in the transformers config.json
    "audio_bos_token_id": "<|vision_start|>",
    "audio_eos_token_id": "<|vision_end|>",
    "audio_token_id": "<|vision_pad|>",
    "eos_token_id": "<|endoftext|>",
}
AUTHORS_NETWORK: dict[str, Any] = {
    "causal": True,
    "conv_bias": True,
    "conv_norm": "none",
    "decoder_depths": None,
    "disable_last_norm": True,
    "layernorm": "RMSNorm",
    "layernorm_elementwise_affine": True,
    "mixer_layer": "depthwise_conv",
    "pad_mode": "constant",
}
# The authors' keys for a tokenizer's hyperparameters, with the keys in the transformers config.json.
NETWORK_KEYS = {
    "channels": "channels",
    "vae_dim": "hidden_size",
    "encoder_n_filters": "num_filters",
    "layernorm_eps": "rms_norm_eps",
}
NOISE_PART = 0.8  # `fix_std` divided by the standard deviation of the factor that scales the noise of a recording
# Replacements that convert transformers names to the authors' names; `+` is the number in the match plus one.
AUTHORS_NAMES = (
    (r"^model\.latent_(scaling|bias)_factor$", r"model.speech_\1_factor"),
    (r"^model\.multi_modal_projector\.", "model.acoustic_connector."),
    (r"_connector\.linear_([12])\.", r"_connector.fc\1."),
    (r"_connector\.act\.", "_connector.norm."),
    (r"^model\.diffusion_head\.(layers\.\d+)\.linear\.", r"model.prediction_head.\1.adaLN_modulation.1."),
    (r"^model\.diffusion_head\.", "model.prediction_head."),
    (r"\.timestep_proj\.fc1\.", ".t_embedder.mlp.0."),
    (r"\.timestep_proj\.fc2\.", ".t_embedder.mlp.2."),
    (r"\.final_layer\.linear_1\.", ".final_layer.adaLN_modulation.1."),
    (r"\.final_layer\.linear_2\.", ".final_layer.linear."),
    (r"^model\.audio_tower\.", "model.acoustic_tokenizer."),
    (r"^model\.semantic_tokenizer_encoder\.", "model.semantic_tokenizer.encoder."),
    (r"coder\.stem\.stage\.", "coder.stages.0."),
    (r"encoder\.stem\.", "encoder.downsample_layers.0.0."),
    (r"decoder\.stem\.", "decoder.upsample_layers.0.0."),
    (r"coder\.conv_layers\.(\d+)\.stage\.", "coder.stages.+."),
    (r"encoder\.conv_layers\.(\d+)\.", "encoder.downsample_layers.+.0."),
    (r"decoder\.conv_layers\.(\d+)\.", "decoder.upsample_layers.+.0."),
    (r"\.mixer\.conv\.", ".mixer.conv.conv.conv."),
    (r"coder\.head\.", "coder.head.conv."),
)


class AuthorsHead(Section):
    """Section `diffusion_head_config` in the authors' format."""

    hidden_size: Size
    latent_size: Size
    head_layers: NumLayers
    head_ffn_ratio: Annotated[float, Field(gt=0, le=64)]
    rms_norm_eps: Epsilon
    prediction_type: Literal["v_prediction"] = "v_prediction"
    ddpm_beta_schedule: Literal["cosine"] = "cosine"
    ddpm_num_steps: Literal[1000] = 1000

    @property
    def record(self) -> dict[str, Any]:
        return {
            "intermediate_size": int(self.hidden_size * self.head_ffn_ratio),
            "num_hidden_layers": self.head_layers,
            "rms_norm_eps": self.rms_norm_eps,
        }


class AuthorsConfig(Section):
    """Sections of config.json in the authors' format that are read as classes."""

    diffusion_head_config: AuthorsHead


def authors_name(name: str) -> str:
    """Convert a tensor name in transformers format to the authors' name."""
    for pattern, replacement in AUTHORS_NAMES:
        match = re.search(pattern, name)
        if match is not None:
            replacement = (
                replacement.replace("+", str(int(match[1]) + 1)) if "+" in replacement else match.expand(replacement)
            )
            name = name[: match.start()] + replacement + name[match.end() :]
    return name


def from_authors(config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """Convert a config.json from the authors' format to transformers format, with the tokenizer's ids."""
    ids = {spelling: number for number, spelling in tokenizer.tokens.items()}
    missing = sorted(token for token in IDS.values() if token not in ids)
    if missing:
        raise CheckpointError(f"{tokenizer.folder}: expected the tokenizer of Qwen2.5, got none of {missing}")
    text = dict(entry(config, "decoder_config"))
    head = AuthorsConfig.read(config).diffusion_head_config
    return {
        "text_config": text,
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        PARTS: network_from_authors(config, AUTHORS),
        SEMANTIC: network_from_authors(config, AUTHORS_SEMANTIC),
        "diffusion_head_config": {
            "hidden_size": head.hidden_size,
            "latent_size": head.latent_size,
            **head.record,
        },
        **{key: ids[token] for key, token in IDS.items()},
    }


def network_from_authors(config: Mapping[str, Any], section: str) -> dict[str, Any]:
    """Return the hyperparameters of a tokenizer from a section of the authors' config.json."""
    network = dict(entry(config, section))
    mirrored = {f"decoder_{name}": network.get(f"encoder_{name}") for name in ("ratios", "n_filters")}
    require(network, section, AUTHORS_NETWORK | mirrored)
    ratios = entry(network, "encoder_ratios")
    depths = entry(network, "encoder_depths")
    if isinstance(depths, str) and re.fullmatch(r"\d{1,3}(-\d{1,3})*", depths):
        depths = [int(depth) for depth in depths.split("-")]
    converted = {ours: network[name] for name, ours in NETWORK_KEYS.items() if name in network}
    converted |= {"downsampling_ratios": ratios[::-1] if isinstance(ratios, list) else ratios, "depths": depths}
    deviation = network.get("fix_std")
    return converted | ({"vae_std": deviation / NOISE_PART} if isinstance(deviation, int | float) else {})


def require(values: Mapping[str, Any], section: str, expected: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a value in a section of config.json differs from the expected one."""
    for name, value in expected.items():
        check_value(f"{section}.{name}", values.get(name, value), value)


def scale(tensors: Mapping[str, Tensor], name: str) -> float:
    """Return a scalar tensor of the release; raise CheckpointError if it is missing or not a finite number."""
    tensor = tensors.get(name)
    value = float("nan")
    if tensor is not None and tensor.numel() == 1 and not tensor.is_complex():
        value = float(tensor.float())  # models compute in float32
    if not isfinite(value) or ("scaling" in name and value == 0):
        got = "nothing" if tensor is None else shown(tensor.flatten()[:4].tolist())
        raise CheckpointError(f"{name}: expected a finite number, not 0 if it is a factor, got {got}")
    return value


def qwen2_backbone(section: Mapping[str, Any], path: str) -> Qwen2Config:
    """Return the backbone that a section of config.json describes; raise CheckpointError if it is not supported."""
    backbone: Qwen2Config = read_numbers(Qwen2Config, {"model_type": "qwen2", **section})
    check_heads(backbone)
    if backbone.use_sliding_window or backbone.hidden_act != "silu":
        raise CheckpointError(f"{path}: expected full attention and silu")
    return backbone


def llama_numbers(backbone: Qwen2Config) -> dict[str, Any]:
    """Return the fields of a config that vLLM's class and ours read."""
    numbers = {name: value for name in LLAMA_NUMBERS if (value := getattr(backbone, name, None)) is not None}
    return {"model_type": "qwen2", **numbers}


class Shape:
    """Model hyperparameters, read from a release's config.json."""

    def __init__(self, config: Mapping[str, Any]):
        text = dict(entry(config, "text_config"))
        backbone = qwen2_backbone(text, "text_config")
        self.backbone = backbone
        self.num_tokens = backbone.vocab_size
        self.is_tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
        self.acoustic = TokenizerConfig.from_record(entry(config, PARTS), PARTS)
        self.semantic = TokenizerConfig.from_record(entry(config, SEMANTIC), SEMANTIC)
        if self.acoustic.hop != self.semantic.hop or self.acoustic.hop * FRAME_RATE != SAMPLE_RATE:
            got = (self.acoustic.hop, self.semantic.hop)
            raise CheckpointError(f"downsampling_ratios: expected {SAMPLE_RATE / FRAME_RATE:g} samples, got {got}")
        head: dict[str, Any] = HEAD | dict(entry(config, "diffusion_head_config"))
        odd = {name: head[name] for name, value in HEAD.items() if head[name] != value}
        if odd:
            raise CheckpointError(f"diffusion_head_config: expected { {name: HEAD[name] for name in odd} }, got {odd}")
        expected = {"hidden_size": backbone.hidden_size, "latent_size": self.acoustic.size}
        if (sizes := {name: head.get(name) for name in expected}) != expected:
            raise CheckpointError(f"diffusion_head_config: expected {expected}, got {sizes}")
        self.head = {name: head[name] for name in ("intermediate_size", "num_hidden_layers", "rms_norm_eps")}
        if not all(type(head[name]) is int and 0 < head[name] < MAX_SIZE for name in list(self.head)[:2]):
            raise CheckpointError(f"diffusion_head_config: expected sizes, got {shown(self.head)}")
        self.llama = llama_numbers(backbone)
        self.vocabulary = VibeVoiceVocabulary.from_record(
            {
                "num_text_ids": self.num_tokens,
                "begin": entry(config, "audio_bos_token_id"),
                "end": entry(config, "audio_eos_token_id"),
                "frame": entry(config, "audio_token_id"),
                "end_of_reply": entry(config, "eos_token_id"),
                "num_numbers": self.acoustic.size,
                "num_features": self.semantic.size,
                "max_model_len": min(backbone.max_position_embeddings, MAX_MODEL_LEN),
                "is_tied": self.is_tied,
            }
        )


def plan(shape: Shape) -> Plan:
    """Return the language-model tensors to write, keyed by published name."""
    parts: Plan = {}
    width = shape.backbone.hidden_size
    ids = shape.vocabulary.ids

    def add(name: str, ours: str, *stored: int, edit: Callable[[Tensor], Tensor] | None = None) -> None:
        parts[name] = Part(ours, stored, edit)

    def layer(name: str, ours: str, rows: int, columns: int, bias: bool = False) -> None:
        add(f"{name}.weight", f"{ours}.weight", rows, columns)
        if bias:
            add(f"{name}.bias", f"{ours}.bias", rows)

    def embeddings(stored: Tensor) -> Tensor:
        return torch.cat([stored, stored.new_zeros(1, width)])  # rows that carry a voice latent have no embedding

    add(EMBEDDINGS, "model.embed_tokens.weight", shape.num_tokens, width, edit=embeddings)
    if not shape.is_tied:
        add("lm_head.weight", "audio_head.weight", shape.num_tokens, width, edit=lambda stored: stored[list(ids)])
    stored_layers = {name.removeprefix("model."): stored for name, stored in shapes(shape.llama).items()}
    parts |= layers_plan(stored_layers, "model.language_model.")
    for name, ours, size in (
        ("multi_modal_projector", "acoustic_connector", shape.acoustic.size),
        ("semantic_connector", "semantic_connector", shape.semantic.size),
    ):
        layer(f"model.{name}.linear_1", f"{ours}.linear_1", width, size, bias=True)
        add(f"model.{name}.act.weight", f"{ours}.act.weight", width)
        layer(f"model.{name}.linear_2", f"{ours}.linear_2", width, width, bias=True)
    for ours, rows, columns in head_layers(shape.head, shape.acoustic.size, width):
        layer(f"model.diffusion_head.{ours}", f"head.{ours}", rows, columns)
    for number in range(shape.head["num_hidden_layers"]):
        add(f"model.diffusion_head.layers.{number}.norm.weight", f"head.layers.{number}.norm.weight", width)
    with torch.device("meta"):
        networks = {
            "decoder": ("model.audio_tower.decoder.", Decoder(shape.acoustic)),
            "encoder": ("model.semantic_tokenizer_encoder.", Encoder(shape.semantic)),
        }
    for ours, (prefix, network) in networks.items():
        for tensor_name, tensor in network.state_dict().items():
            published = published_name(f"{ours}.{tensor_name}").removeprefix(f"{ours}.")
            add(f"{prefix}{published}", f"feedback.{ours}.{tensor_name}", *tensor.shape)
    return parts


def head_layers(head: Mapping[str, Any], size: int, width: int) -> list[tuple[str, int, int]]:
    """Return the name, rows and columns of each linear layer in the diffusion head."""
    inner = head["intermediate_size"]
    layers = [
        ("noisy_images_proj", width, size),
        ("cond_proj", width, width),
        ("timestep_proj.fc1", width, HEAD["frequency_embedding_size"]),
        ("timestep_proj.fc2", width, width),
        ("final_layer.linear_1", 2 * width, width),
        ("final_layer.linear_2", size, width),
    ]
    for number in range(head["num_hidden_layers"]):
        name = f"layers.{number}"
        layers += [(f"{name}.linear", 3 * width, width), (f"{name}.ffn.down_proj", width, inner)]
        layers += [(f"{name}.ffn.{projection}_proj", inner, width) for projection in ("gate", "up")]
    return layers
