"""Conversion of Higgs Audio v2's release in transformers' layout (`model_type` higgs_audio_v2).

https://huggingface.co/bosonai/higgs-audio-v2-generation-3B-base. Boson's first files of the same weights, with other
names, are detected by these names. The codec is a separate release, bosonai/higgs-audio-v2-tokenizer, in either of two
layouts (`convert_codec.py`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from stretto.errors import CheckpointError
from stretto.families.conversion import AUDIO, Contents, Converted, Release, Tokenizer
from stretto.families.higgs_audio.convert_codec import boson_codec
from stretto.families.higgs_audio.family import NEEDED, NUM_MARKS, SCENE_END, SCENE_START, HiggsAudioVocabulary
from stretto.families.registry import NAME, VOCABULARY
from stretto.weights.backbones import LLAMA_NUMBERS, check_heads, dtype_of, read_numbers
from stretto.weights.tensors import Part, Plan, shapes_of

BACKBONE_TAG = None  # config.json itself has the hyperparameters
CODEC = ""  # the codec is a separate release
GENERATION = AUDIO | {"ras_win_len": ("ras_window",), "ras_win_max_num_repeat": ("ras_max_repeats",)}
EMBEDDINGS = "model.embed_tokens.weight"
CODES = "model.embed_audio_tokens.embed_audio_tokens.weight"
HEADS = "audio_lm_head.weight"
# A head over text, for training, and copies with the names of Boson's own files.
DROPPED = ("text_lm_head.", "audio_decoder_proj.")
BOSONS = "audio_codebook_embeddings.weight"  # https://github.com/boson-ai/higgs-audio, modeling_higgs_audio.py
MARKS = {BOSONS: "Higgs Audio's language model in Boson's own layout"}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint: the table of codes is appended to that of text, and heads are for codes only."""
    if BOSONS in contents.tensors:
        raise CheckpointError(f"{release.model}: expected the files of transformers' class, got Boson's own ({BOSONS})")
    config = read_config(contents.config)
    known = vocabulary(config, contents.tokenizer)
    record = {
        "architectures": ["StrettoHiggsAudioForCausalLM"],
        "model_type": "llama",
        NAME: "higgs_audio_v2",
        VOCABULARY: known.to_record(),
        "vocab_size": known.layout.vocab_size,
        **{name: getattr(config, name) for name in LLAMA_NUMBERS},
        "tie_word_embeddings": True,  # no head over this vocabulary; codes are sampled from `audio_head`
        "dtype": contents.dtype,
    }
    folder = release.codec
    codec = None if folder is None else boson_codec(folder, known.num_codebooks, known.codebook_size)
    networks = () if codec is None else (codec,)
    return Converted(record, plan(config, contents.tensors), DROPPED, folded=(CODES,), networks=networks)


def trained_dtype(config: Mapping[str, Any]) -> str | None:
    """Return the dtype in config.json; None if there is none."""
    return dtype_of(config)


def notes(config: Mapping[str, Any], embeddings: Tensor, family: str) -> list[str]:
    """Return no notes."""
    return []


def read_config(record: Mapping[str, Any]) -> Any:
    """Return config.json as a HiggsAudioV2Config.

    Raises:
        CheckpointError: If it is of another model, or of an unsupported one.
    """
    config = read_numbers(HiggsAudioV2Config, record)
    check_heads(config)
    found = (config.attention_bias, config.mlp_bias, config.hidden_act)
    if found != (False, False, "silu"):
        raise CheckpointError(f"config.json: expected layers without biases, and silu; got {found}")
    num_codes = config.codebook_size - NUM_MARKS
    marks = (config.audio_stream_bos_id, config.audio_stream_eos_id)
    if marks != (num_codes, num_codes + 1):
        expected = f"audio_stream_bos_id and audio_stream_eos_id to be the last two of codebook_size {num_codes + 2}"
        raise CheckpointError(f"config.json: expected {expected}, got {marks}")
    if not isinstance(config.eos_token_id, int) or not isinstance(config.pad_token_id, int):
        got = f"{config.eos_token_id} and {config.pad_token_id}"
        raise CheckpointError(f"config.json: expected one eos_token_id and one pad_token_id, got {got}")
    return config


def vocabulary(config: Any, tokenizer: Tokenizer) -> HiggsAudioVocabulary:
    """Return the vocabulary: ids of the tokenizer, followed by those of the codebooks."""
    ids = {spelling: token_id for token_id, spelling in tokenizer.tokens.items()}
    missing = [name for name in NEEDED if name not in ids]
    if missing or tokenizer.size > config.vocab_size:
        got = f"{tokenizer.size} tokens" + (f", without {', '.join(missing)}" if missing else "")
        raise CheckpointError(
            f"{tokenizer.folder}: expected a tokenizer of at most {config.vocab_size} tokens with {', '.join(NEEDED)}, "
            f"got {got}"
        )
    return HiggsAudioVocabulary(
        num_text_ids=config.vocab_size,
        num_codebooks=config.num_codebooks,
        codebook_size=config.codebook_size - NUM_MARKS,
        pad=config.pad_token_id,
        end_of_reply=config.eos_token_id,
        markers={name: ids[name] for name in (*NEEDED, SCENE_START, SCENE_END) if name in ids},
        max_model_len=config.max_position_embeddings,
    )


def plan(config: Any, tensors: Mapping[str, Tensor]) -> Plan:
    """Return the tensors to write; layers keep their names."""
    shapes = shapes_of(HiggsAudioV2ForConditionalGeneration, config)
    if CODES in tensors and tuple(tensors[CODES].shape) != shapes[CODES]:
        found = f"{CODES} {list(tensors[CODES].shape)} for {list(shapes[CODES])}"
        raise CheckpointError(f"tensors do not fit: of another shape: {found}")
    if CODES not in tensors:
        raise CheckpointError(f"tensors do not fit: missing: {CODES}")

    def with_codes(text: Tensor) -> Tensor:
        codes = torch.empty(shapes[CODES], device="meta") if text.is_meta else tensors[CODES].to(text.dtype)
        return torch.cat([text, codes])

    parts = {name: Part(name, shape) for name, shape in shapes.items() if name.startswith("model.")}
    del parts[CODES]
    parts[EMBEDDINGS] = Part(EMBEDDINGS, shapes[EMBEDDINGS], with_codes)
    parts[HEADS] = Part("audio_head.weight", shapes[HEADS])
    return parts
