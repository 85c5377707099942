"""Conversion of the IndexTTS-2 release (https://huggingface.co/IndexTeam/IndexTTS-2).

The networks of other repositories are in its folder `hf_cache`, where the authors' code places them. All embeddings
become one table. `qwen0.6bemo4-merge`, which guesses an emotion from a text, is not read.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stretto.errors import CheckpointError, InvalidRequest
from stretto.family.audio_format import KEY
from stretto.family.conversion import Contents, Converted, Release, Tokenizer, common_record, merged
from stretto.family.layers import gpt2_layer
from stretto.family.sections import NumLayers, Section, Size
from stretto.family.text import sentencepiece_at
from stretto.untrusted_files import check_value, released_file
from stretto.weights.backbones import TOKENS
from stretto.weights.loading import Part, Plan, require, shapes_read
from stretto_indextts2.codec import MAX_VOICE_ROWS
from stretto_indextts2.convert_codec import codec_network
from stretto_indextts2.convert_voices import hearing_network
from stretto_indextts2.family import FIRST_POSITION, NUM_SPEEDS, IndexVocabulary

CONFIG = "config.yaml"
MODEL = "gpt.pth"
TOKENIZER = "bpe.model"
EMBEDDINGS = "text_embedding.weight"
SPEEDS = "speed_emb.weight"
VOICE_ROWS = "perceiver_encoder.latents"
MARKS = {SPEEDS: "IndexTTS-2"}
LAYERS = "gpt.h."
MAX_ROWS = 8192
NUM_STARTS = 1  # row of the id before the codes
MAX_HEAD_WIDTH = 256  # of attention in vLLM
# Tensors that only training needs, copies of others, and those of the networks that encode recordings.
UNUSED = (
    "text_head.",
    "gpt.wte.",
    "inference_model.",
    "conditioning_encoder.",
    "perceiver_encoder.",
    "emo_conditioning_encoder.",
    "emo_perceiver_encoder.",
    "emo_layer.",
    "emovec_layer.",
)
MASKS = ("attn.bias", "attn.masked_bias")  # constants that older versions of transformers store in each layer


class Gpt(Section):
    """`gpt`: the language model."""

    model_dim: Size
    heads: Size
    layers: NumLayers
    max_mel_tokens: Annotated[int, Field(ge=2, le=MAX_ROWS)]
    max_text_tokens: Annotated[int, Field(ge=2, le=MAX_ROWS)]
    number_text_tokens: Size
    number_mel_codes: Annotated[int, Field(ge=4, le=1 << 16)]
    start_mel_token: int
    stop_mel_token: int
    start_text_token: Literal[0] = 0
    stop_text_token: Literal[1] = 1
    condition_type: Literal["conformer_perceiver"]
    use_mel_codes_as_input: Literal[True] = True
    train_solo_embeddings: Literal[False] = False

    @model_validator(mode="after")
    def _check_heads(self) -> Self:
        if self.model_dim % self.heads:
            raise InvalidRequest("heads", f"a divisor of {self.model_dim} (model_dim)", self.heads)
        return self


class SemanticCodec(Section):
    """`semantic_codec`: the codes."""

    codebook_size: Size


class Spectrum(Section):
    """`s2mel.preprocess_params.spect_params`: mel frames, which the decoder assumes."""

    n_fft: Literal[1024]
    win_length: Literal[1024]
    hop_length: Literal[256]
    n_mels: Literal[80]


class Preprocessing(Section):
    """`s2mel.preprocess_params`."""

    sr: Literal[22050]
    spect_params: Spectrum


class Transformer(Section):
    """`s2mel.DiT`: the transformer of the flow."""

    num_heads: Size


class Acoustics(Section):
    """`s2mel`: the flow that generates mel frames."""

    preprocess_params: Preprocessing
    DiT: Transformer


class Config(Section):
    """config.yaml."""

    version: Annotated[float, Field(ge=2.0, lt=2.1)] = 2.0
    gpt: Gpt
    semantic_codec: SemanticCodec
    s2mel: Acoustics
    emo_num: Annotated[list[Size], Field(min_length=8, max_length=8)]


def located(release: Release) -> Release:
    """Return the release with the paths of its language model and config."""
    folder = release.folder
    model = released_file(folder, MODEL) if release.model.is_dir() else release.model
    return replace(release, model=model, config=released_file(folder, CONFIG))


def own_tokenizer(release: Release, tensors: Mapping[str, Tensor]) -> Tokenizer:
    """Return the SentencePiece tokenizer of a release."""
    path = released_file(release.tokenizer, TOKENIZER)
    tokens = sentencepiece_at(path).tokens
    return Tokenizer(release.tokenizer, len(tokens), tokens, files=(path,))


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint: all embeddings in one table, and a head over the codes, start and end."""
    config = Config.read(contents.config, CONFIG)
    check_codes(config)
    gpt = config.gpt
    width = gpt.model_dim
    head_width = width // gpt.heads
    if head_width > MAX_HEAD_WIDTH:
        raise CheckpointError(f"{CONFIG}: gpt.heads: expected heads of at most {MAX_HEAD_WIDTH}, got {head_width}")
    tensors = contents.tensors
    gpt_plan = plan(gpt)
    require(tensors, {**shapes_read(gpt_plan), VOICE_ROWS: (None, width)})
    vocabulary = vocabulary_of(gpt, len(tensors[VOICE_ROWS]))
    contents.tokenizer.ids_of((), vocabulary.num_text_ids)
    record = {
        "architectures": ["StrettoIndexTts2ForCausalLM"],
        "model_type": "gpt2",
        **dict.fromkeys(TOKENS),
        "hidden_size": width,
        "num_hidden_layers": gpt.layers,
        "num_attention_heads": gpt.heads,
        "max_position_embeddings": vocabulary.max_model_len,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        **common_record("indextts2", vocabulary, vocabulary.layout.vocab_size, contents),
        KEY: {"model_type": "indextts2_voice", "hidden_size": width},
    }
    networks = (
        codec_network(release.folder, tensors, gpt.heads, config.s2mel.DiT.num_heads),
        hearing_network(release.folder, tensors, tuple(config.emo_num)),
    )
    masks = tuple(f"{LAYERS}{number}.{name}" for number in range(gpt.layers) for name in MASKS)
    return Converted(record, gpt_plan, (*UNUSED, *masks), networks=networks)


def check_codes(config: Config) -> None:
    """Raise CheckpointError unless the start and the end follow the codes, all of which the codebook has."""
    num_codes = config.gpt.number_mel_codes - 2
    check_value("gpt.start_mel_token", config.gpt.start_mel_token, num_codes, file=CONFIG)
    check_value("gpt.stop_mel_token", config.gpt.stop_mel_token, num_codes + 1, file=CONFIG)
    check_value("semantic_codec.codebook_size", config.semantic_codec.codebook_size, num_codes, file=CONFIG)


def notes(config: Mapping[str, Any], embeddings: Tensor, family: str) -> list[str]:
    """Return notes on the voices and the emotions."""
    return [
        "voices and emotions come from recordings; no emotion is guessed from a text",
        "the codebook is MaskGCT's, under CC-BY-NC-4.0",
    ]


def vocabulary_of(gpt: Gpt, num_voice_rows: int) -> IndexVocabulary:
    """Return the vocabulary of a release; raise CheckpointError if its sequences are too long."""
    num_text_positions = gpt.max_text_tokens + 2
    num_code_positions = gpt.max_mel_tokens + 3
    num_reply_rows = num_code_positions - FIRST_POSITION
    num_rows = num_voice_rows + NUM_SPEEDS + num_text_positions + NUM_STARTS + num_reply_rows
    if num_voice_rows > MAX_VOICE_ROWS:
        raise CheckpointError(f"{VOICE_ROWS}: expected at most {MAX_VOICE_ROWS} rows, got {num_voice_rows}")
    if num_rows > MAX_ROWS:
        expected = f"at most {MAX_ROWS} rows of voice, text and codes"
        raise CheckpointError(f"{CONFIG}: gpt: expected {expected}, got {num_rows}")
    return IndexVocabulary(
        num_text_ids=gpt.number_text_tokens + 1,
        num_codes=gpt.start_mel_token,
        num_text_positions=num_text_positions,
        num_code_positions=num_code_positions,
        num_voice_rows=num_voice_rows,
        max_model_len=num_rows,
    )


def plan(gpt: Gpt) -> Plan:
    """Return the plan of the language model's tensors, by published name."""
    width = gpt.model_dim
    tables = {
        EMBEDDINGS: (gpt.number_text_tokens + 1, width),
        "mel_embedding.weight": (gpt.number_mel_codes, width),
        "text_pos_embedding.emb.weight": (gpt.max_text_tokens + 2, width),
        "mel_pos_embedding.emb.weight": (gpt.max_mel_tokens + 3, width),
        SPEEDS: (NUM_SPEEDS, width),
    }

    def rows_of_all_ids(text: Tensor, *others: Tensor) -> Tensor:
        return torch.cat([text, text.new_zeros(1, width), *others])

    parts: Plan = {
        **merged("transformer.wte.weight", rows_of_all_ids, tables),
        "mel_head.weight": Part("audio_head.weight", (gpt.number_mel_codes, width)),
        "mel_head.bias": Part("audio_head.bias", (gpt.number_mel_codes,)),
    }
    for number, norm in enumerate(("gpt.ln_f", "final_norm")):
        parts |= {f"{norm}.{name}": Part(f"transformer.ln_f.{number}.{name}", (width,)) for name in ("weight", "bias")}
    for number in range(gpt.layers):
        for name, shape in gpt2_layer(width).items():
            parts[f"{LAYERS}{number}.{name}"] = Part(f"transformer.h.{number}.{name}", shape)
    return parts
