"""Conversion of Kyutai's speech-to-text releases in transformers format, which has Mimi in the same files.

It supports https://huggingface.co/kyutai/stt-2.6b-en-trfs, kyutai/stt-1b-en_fr-trfs, and models that
`KyutaiSpeechToTextForConditionalGeneration.save_pretrained` wrote. The feature extractor's config has the delays. There
are no pause heads. Queries and keys are already in the order in which halves of a head are rotated.

A reply begins with the id that follows the text ids, as in the authors' code. `bos_token_id` is not read: by default it
is an id of the codes of codebook 21.
"""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import MimiConfig, MimiModel

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import (
    Contents,
    Converted,
    Network,
    Release,
    common_record,
    concatenated,
    integer,
    merged,
)
from stretto.untrusted_files import UNPARSABLE, entry, json_object, released_file, without_keys
from stretto.weights.loading import Part, Plan, shapes_of
from stretto_kyutai.kyutai_stt.convert import (
    check_config,
    check_tokenizer,
    check_width,
    durations,
    llama_record,
)
from stretto_kyutai.kyutai_stt.family import NAME, SttVocabulary
from stretto_kyutai.kyutai_stt.recognise import FEATURES, PROCESSOR

IS_BARE = True  # the tokenizer need not be byte-level
EMBEDDINGS = "model.embed_tokens.embed_tokens.weight"
LAYERS_EXPECTED: dict[str, tuple[Any, ...]] = {  # supported values of config.json; shared with `moshi`
    "hidden_act": ("silu",),
    "tie_word_embeddings": (False, None),
}
EXPECTED = {"model_type": ("kyutai_speech_to_text",), **LAYERS_EXPECTED}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including Mimi."""
    config = contents.config
    check_config(config, EXPECTED)
    vocab = vocabulary(config, delays_of(release))
    check_tokenizer(contents.tokenizer, vocab.num_text_ids)
    record = {
        **backbone_record(config),
        "max_position_embeddings": vocab.max_model_len,
        **common_record(NAME, vocab, vocab.vocab_size, contents, has_head=True),
    }
    codec = codec_network(config, "codec_config", "codec_model.", vocab.num_codebooks, vocab.codebook_size)
    return Converted(record, backbone_plan(config, "model.") | plan(config, vocab), (), networks=(codec,))


def delays_of(release: Release) -> dict[str, Any]:
    """Return the fields of the vocabulary that the feature extractor's config determines.

    Versions 5 of transformers write it as a section of the processor's config.
    """
    folder = release.config_folder
    file_name = next((name for name in (FEATURES, PROCESSOR) if (folder / name).exists()), FEATURES)
    section = "feature_extractor" if file_name == PROCESSOR else ""
    return durations(json_object(released_file(folder, file_name)), file_name, section)


def vocabulary(config: Mapping[str, Any], delays: Mapping[str, Any]) -> SttVocabulary:
    """Return a release's vocabulary; its tables also have the initial ids, which follow the others."""
    num_codes = integer(config, "codebook_vocab_size") - 1
    if (initial_id := config.get("audio_bos_token_id")) != num_codes:
        raise CheckpointError(f"config.json: audio_bos_token_id: expected {num_codes}, got {shown(initial_id)}")
    return SttVocabulary(
        num_text_ids=integer(config, "vocab_size") - 1,
        num_codebooks=integer(config, "num_codebooks"),
        codebook_size=num_codes,
        **delays,
    )


def backbone_record(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the backbone fields for the checkpoint's config.json, given the release's config."""
    width = integer(config, "hidden_size")
    heads = integer(config, "num_attention_heads")
    check_width("hidden_size", width, heads)
    supported = {"num_key_value_heads": (heads, None), "head_dim": (width // heads, None)}
    check_config(config, supported)
    numbers = {
        "hidden_size": width,
        "intermediate_size": inner_width(config),
        "num_hidden_layers": integer(config, "num_hidden_layers"),
        "num_attention_heads": heads,
    }
    eps = positive(config, "rms_norm_eps")
    window = integer(config, "sliding_window")
    return llama_record(numbers, eps, rope_theta(config), window)


def inner_width(config: Mapping[str, Any], path: str = "ffn_dim") -> int:
    """Return the width of gated feed-forward layers, given the dotted path of that of gate and input together."""
    both = integer(config, path)
    if both % 2:
        raise CheckpointError(f"config.json: {path}: expected an even integer, got {both}")
    return both // 2


def positive(config: Mapping[str, Any], path: str) -> float:
    """Return the number at a dotted path; raise CheckpointError unless it is positive and at most 1e9."""
    number = entry(config, path, "config.json")
    if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number <= 1e9:
        raise CheckpointError(f"config.json: {path}: expected a positive number, got {shown(number)}")
    return float(number)


def rope_theta(config: Mapping[str, Any]) -> float:
    """Return the base of the rotary embedding, which versions 4 of transformers write as a field of its own."""
    section = config.get("rope_parameters")
    if not isinstance(section, Mapping):
        check_config(config, {"rope_scaling": (None,)})
        return positive(config, "rope_theta")
    if (rope_type := section.get("rope_type", "default")) != "default":
        raise CheckpointError(f"config.json: rope_parameters.rope_type: expected 'default', got {shown(rope_type)}")
    return positive(config, "rope_parameters.rope_theta")


def backbone_plan(config: Mapping[str, Any], prefix: str) -> Plan:
    """Return the plan of the backbone's layers and final norm.

    Args:
        config: Contents of config.json.
        prefix: Prefix of the backbone's tensors, with a dot at the end.
    """
    width = integer(config, "hidden_size")
    inner = inner_width(config)
    parts: Plan = {f"{prefix}norm.weight": Part("model.norm.weight", (width,))}
    for layer in range(integer(config, "num_hidden_layers")):
        stored = f"{prefix}layers.{layer}"
        ours = f"model.layers.{layer}"
        fused = dict.fromkeys((f"{stored}.self_attn.{letter}_proj.linear.weight" for letter in "qkv"), (width, width))
        parts |= merged(f"{ours}.self_attn.qkv_proj.weight", concatenated, fused)
        for name, mine, shape in (
            ("self_attn.o_proj.linear.weight", "self_attn.o_proj.weight", (width, width)),
            ("mlp.fc1.weight", "mlp.gate_up_proj.weight", (2 * inner, width)),
            ("mlp.fc2.weight", "mlp.down_proj.weight", (width, inner)),
            ("input_layernorm.weight", "input_layernorm.weight", (width,)),
            ("post_attention_layernorm.weight", "post_attention_layernorm.weight", (width,)),
        ):
            parts[f"{stored}.{name}"] = Part(f"{ours}.{mine}", shape)
    return parts


def plan(config: Mapping[str, Any], vocab: SttVocabulary) -> Plan:
    """Return the plan of the embeddings and the head."""
    width = integer(config, "hidden_size")
    num_text = vocab.num_text_ids
    num_ids = vocab.vocab_size
    num_rows = num_ids - 1  # without our own two ids, but with a row of zeros at the end

    def table(stored: Tensor) -> Tensor:
        """Return the embeddings of text and initial text, of our own two ids, and of all codes, [V, H]."""
        return torch.cat([stored[: num_text + 1], stored.new_zeros(2, width), stored[num_text + 1 : -1]])

    def head(stored: Tensor) -> Tensor:
        """Return the head of text; the last row is that of the initial id, which is never generated."""
        return torch.cat([stored[:-1], stored.new_zeros(num_ids - num_text, width)])

    return {
        EMBEDDINGS: Part("model.embed_tokens.weight", (num_rows, width), table),
        "lm_head.weight": Part("lm_head.weight", (num_text + 1, width), head),
    }


def codec_network(
    config: Mapping[str, Any], section: str, prefix: str, num_codebooks: int, codebook_size: int
) -> Network:
    """Return Mimi from the release's own tensors.

    Args:
        config: Contents of config.json.
        section: Key of Mimi's config in it.
        prefix: Prefix of Mimi's tensors, with a dot at the end.
        num_codebooks: Number of codebooks that the model reads.
        codebook_size: Number of codes of each.

    Raises:
        CheckpointError: If it is another codec, or does not have these codebooks.
    """
    numbers = entry(config, section, "config.json")
    model_type = numbers.get("model_type", "mimi") if isinstance(numbers, Mapping) else numbers
    if model_type != "mimi":
        raise CheckpointError(f"config.json: {section}: expected a config of mimi, got {shown(model_type)}")
    try:
        mimi = MimiConfig.from_dict(without_keys(numbers))
    except (*UNPARSABLE, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"config.json: {section}: invalid parameters for mimi: {reason}") from error
    sizes = (mimi.num_quantizers, mimi.codebook_size)
    if sizes[0] < num_codebooks or sizes[1] != codebook_size:
        expected = f"{num_codebooks} codebooks of {codebook_size} codes"
        raise CheckpointError(f"config.json: {section}: expected {expected}, got {sizes[0]} of {sizes[1]}")
    parts = {f"{prefix}{name}": Part(name, shape) for name, shape in shapes_of(MimiModel, mimi).items()}
    return Network("codec", {**mimi.to_dict(), "architectures": ["MimiModel"]}, parts)
