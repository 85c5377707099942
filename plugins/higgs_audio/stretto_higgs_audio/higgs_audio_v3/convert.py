"""Conversion of Higgs Audio v3: names and shapes as published by Boson AI (`model_type` higgs_multimodal_qwen3).

The release is https://huggingface.co/bosonai/higgs-tts-3-4b. `model.safetensors` also contains the codec, with the
names that it has in transformers, and copies of the two tied tables as heads. The codec's parameters are not in the
release: they are those of bosonai/higgs-audio-v2-tokenizer, unless config.json has a `codec_config`.
"""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import HiggsAudioV2TokenizerConfig, Qwen3Config, Qwen3Model

from stretto.codecs.higgs import HiggsModel
from stretto.errors import CheckpointError, shown
from stretto.family.conversion import (
    Contents,
    Converted,
    Network,
    Release,
    Tokenizer,
    common_record,
    concatenated,
    merged,
)
from stretto.family.layers import layers_plan
from stretto.untrusted_files import UNPARSABLE, check_value, entry, without_keys
from stretto.weights.backbones import LLAMA_NUMBERS, check_heads, dtype_of, read_numbers
from stretto.weights.loading import Part, Plan, shapes_of
from stretto_higgs_audio.higgs_audio_v3.family import (
    MAX_ROWS,
    NAME,
    NEEDED,
    NUM_MARKS,
    TAG,
    HiggsAudioV3Vocabulary,
)

KIND = "higgs_multimodal_qwen3"
ROPE_THETA = 1_000_000  # Qwen3's; some files have null
# and ids of a codebook: tables of their sizes are made
MAX_CODEBOOKS = 64
MAX_IDS = 1 << 16
TEXTS = "tied.embedding.text_embedding.weight"
CODES = "tied.embedding.modality_embeddings.0.embedding.weight"
CODEC = "tied.embedding.modality_embeddings.0.model."
EMBEDDINGS = TEXTS
MARKS = {CODES: "Higgs Audio v3"}
# Copies of tied tables, and a tensor of the codec that only training uses.
DROPPED = ("tied.head.", f"{CODEC}semantic_model.masked_spec_embed")
MIN_PROMPT_ROWS = 4  # <|tts|>, <|text|>, a word, <|audio|>
RATIOS = [8, 5, 4, 2, 3]
CODEC_CONFIG = {
    "target_bandwidths": [0.5, 1, 1.5, 2],
    "acoustic_model_config": {
        "encoder_hidden_size": 64,
        "decoder_hidden_size": 1024,
        "hidden_size": 256,
        "downsampling_ratios": RATIOS,
        "upsampling_ratios": RATIOS,
    },
    "semantic_model_config": {"model_type": "hubert", "mask_time_prob": 0.0},
}


def trained_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype used in training, which is that of the text model if the config has no other."""
    return dtype_of(config) or dtype_of(entry(config, "text_config"))


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written: the code embeddings appended to the text table, and as their head."""
    config = read_config(contents.config)
    size = contents.config["audio_encoder_config"]
    vocab = vocabulary(config, size["num_codebooks"], size["vocab_size"], contents.tokenizer)
    record = {
        "architectures": ["StrettoQwen3ForCausalLM"],
        "model_type": "qwen3",
        **{name: getattr(config, name) for name in LLAMA_NUMBERS if name != "mlp_bias"},
        **common_record(NAME, vocab, vocab.layout.vocab_size, contents),
        "max_position_embeddings": vocab.max_model_len,
    }
    codec = codec_network(contents.config, vocab)
    return Converted(record, plan(config, vocab), DROPPED, networks=(codec,))


def read_config(record: Mapping[str, Any]) -> Any:
    """Parse the text model in config.json as a Qwen3Config.

    Raises:
        CheckpointError: If the config belongs to another model, or the model is not supported.
    """
    check_value("model_type", record.get("model_type"), KIND)
    audio = entry(record, "audio_encoder_config")
    text = dict(entry(record, "text_config"))
    rope = text.get("rope_parameters") or {}
    if text.get("rope_theta") is None and rope.get("rope_theta") is None:
        text["rope_theta"] = ROPE_THETA
    config = read_numbers(Qwen3Config, text)
    check_heads(config)
    for name, max_positions, expected in (
        ("audio_encoder_config.encoder_type", audio.get("encoder_type", "discrete"), "discrete"),
        ("audio_encoder_config.tie_word_embeddings", audio.get("tie_word_embeddings", True), True),
        ("audio_encoder_config.use_delay_pattern", audio.get("use_delay_pattern", True), True),
        ("audio_encoder_config.out_dim", audio.get("out_dim", config.hidden_size), config.hidden_size),
        ("text_config.attention_bias", config.attention_bias, False),
        ("text_config.hidden_act", config.hidden_act, "silu"),
        ("text_config.use_sliding_window", config.use_sliding_window, False),
    ):
        check_value(name, max_positions, expected)
    for name, least, most in (("num_codebooks", 2, MAX_CODEBOOKS), ("vocab_size", NUM_MARKS + 1, MAX_IDS)):
        if not isinstance(number := entry(audio, name), int) or not least <= number <= most:
            expected = f"an integer in [{least}, {most}]"
            raise CheckpointError(f"config.json: audio_encoder_config.{name}: expected {expected}, got {shown(number)}")
    least = MIN_PROMPT_ROWS + 2 * audio["num_codebooks"]  # rows of the shortest prompt and of its shortest reply
    if (max_positions := config.max_position_embeddings) < least:
        expected = f"at least {least} rows"
        raise CheckpointError(
            f"config.json: text_config.max_position_embeddings: expected {expected}, got {max_positions}"
        )
    return config


def vocabulary(config: Any, num_codebooks: int, codebook_size: int, tokenizer: Tokenizer) -> HiggsAudioV3Vocabulary:
    """Return the vocabulary: tokenizer ids, followed by the ids of the codebooks.

    Args:
        config: Parameters of the text model.
        num_codebooks: Number of codebooks.
        codebook_size: Number of ids of a codebook, including begin and end.
        tokenizer: Text tokenizer.
    """
    ids = tokenizer.ids_of(NEEDED, config.vocab_size)
    tags = {name: token_id for name, token_id in ids.items() if TAG.fullmatch(name)}
    return HiggsAudioV3Vocabulary(
        num_text_ids=config.vocab_size,
        num_codebooks=num_codebooks,
        codebook_size=codebook_size - NUM_MARKS,
        markers={name: ids[name] for name in NEEDED} | tags,
        max_model_len=min(MAX_ROWS, config.max_position_embeddings),
    )


def plan(config: Any, vocab: HiggsAudioV3Vocabulary) -> Plan:
    """Return the plan of tensors to write, by published name."""
    shapes = {f"body.{name}": shape for name, shape in shapes_of(Qwen3Model, config).items()}
    codes = (vocab.num_codebooks * (vocab.codebook_size + NUM_MARKS), config.hidden_size)
    table = merged("model.embed_tokens.weight", concatenated, {TEXTS: shapes["body.embed_tokens.weight"], CODES: codes})
    return table | layers_plan(shapes, "body.") | {CODES: Part("audio_head.weight", codes)}


def codec_network(record: Mapping[str, Any], vocab: HiggsAudioV3Vocabulary) -> Network:
    """Return the codec among the tensors of the release.

    Raises:
        CheckpointError: If `codec_config` is invalid, or belongs to a codec with other codebooks.
    """
    codec_config = record.get("codec_config")
    try:
        config = HiggsAudioV2TokenizerConfig.from_dict(
            without_keys(dict(CODEC_CONFIG if codec_config is None else codec_config))
        )
        shapes = shapes_of(HiggsModel, config)
        sizes = (config.num_quantizers, config.codebook_size)
    except (*UNPARSABLE, RuntimeError, StrictDataclassError) as error:
        raise CheckpointError(f"config.json: codec_config: invalid parameters: {shown(error, 200)}") from error
    if sizes != (vocab.num_codebooks, vocab.codebook_size):
        expected = f"{vocab.num_codebooks} codebooks of {vocab.codebook_size} codes"
        raise CheckpointError(f"config.json: expected {expected}, as audio_encoder_config has; the codec has {sizes}")
    parts = {f"{CODEC}{name}": Part(name, shape) for name, shape in shapes.items()}
    return Network("codec", {**config.to_dict(), "architectures": ["HiggsAudioV2TokenizerModel"]}, parts)
