"""Conversion of the Chatterbox Turbo and Nano releases."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.audio_format import KEY
from stretto.family.conversion import Contents, Converted, Network, Release, Tokenizer, merged, unchanged
from stretto.family.layers import gpt2_layer
from stretto.family.plugin import NAME, VOCABULARY
from stretto.family.text import TOKENIZER_FILE, TextTokenizer, check_ids
from stretto.untrusted_files import MAX_TEXT_BYTES, json_object, regular_file, released_file
from stretto.weights.backbones import TOKENS
from stretto.weights.loading import Part, Plan, check, require
from stretto_chatterbox.family import (
    END_OF_SPEECH,
    START_OF_SPEECH,
    TurboVocabulary,
)
from stretto_chatterbox.release import (
    EMBEDDINGS,
    HEAD,
    HEAD_BIAS,
    LAYERS,
    MAX_ROWS,
    TOLD,
    TURBO_FILE,
    X_VECTOR,
    read_voice_part,
    read_voices,
    recording_encoder_network,
    s3gen,
)
from stretto_chatterbox.voices import (
    CONDITIONS,
    MAX_TURBO_CODES,
    SPEECH,
    TurboRecordingEncoder,
    speaker_row,
)

POSITIONS = "tfmr.wpe.weight"  # tensor that only Turbo and Nano have
# GPT-2 head width, and maximum width
GPT2_HEAD = 64
MAX_WIDTH = 1 << 14
GPT2_FILES = ("vocab.json", "merges.txt")
# limits, because the profile lists all tags; 19 are published
MAX_TAGS = 1024
TAG = r"[ !#-&(-\[\]-~]{1,64}"


def turbo_tokenizer(folder: Path) -> Tokenizer:
    """Read the Turbo or Nano tokenizer, which is the GPT-2 tokenizer with tags, from a folder.

    The source is tokenizer.json, or else vocab.json, merges.txt and added_tokens.json. Tokens that are added to the BPE
    are tags: they are marked as not special, so that their names in a text are one token each.
    """
    path = folder / TOKENIZER_FILE
    try:
        if os.path.lexists(path):
            record = json_object(released_file(folder, TOKENIZER_FILE))
            check_ids(record["model"]["vocab"], path)
        else:
            record = json.loads(gpt2_tokenizer(folder).to_str())
        size = len(record["model"]["vocab"])
        for token in record["added_tokens"]:
            token["special"] &= token["id"] < size
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(record))
    except CheckpointError:
        raise
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(f"{folder}: expected the files of GPT-2's tokenizer, got an error: {error!r}") from error
    tokens = TextTokenizer(tokenizer).tokens
    if not tokens:
        raise CheckpointError(f"{folder}: expected a tokenizer with at least one token, got none")
    odd = [name for name in tags(record) if not re.fullmatch(TAG, name)]
    if odd or len(tags(record)) > MAX_TAGS:
        expected = f"at most {MAX_TAGS} added tokens of 1 to 64 ASCII characters without quotes and backslashes"
        raise CheckpointError(f"{folder}: expected {expected}, got {shown(odd[0]) if odd else len(tags(record))}")
    return Tokenizer(folder, 1 + max(tokens), tokens, record)


def tags(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the tag names in the contents of a tokenizer.json."""
    return tuple(token["content"] for token in record.get("added_tokens", ()) if not token["special"])


def gpt2_tokenizer(folder: Path) -> tokenizers.Tokenizer:
    """Read the tokenizer from vocab.json, merges.txt and added_tokens.json."""
    path = released_file(folder, GPT2_FILES[0])
    check_ids(json_object(path), path)
    files = [str(regular_file(released_file(folder, name), MAX_TEXT_BYTES)) for name in GPT2_FILES]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(*files))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    added = json_object(released_file(folder, "added_tokens.json"))
    ordered = sorted(added.items(), key=lambda name_and_id: name_and_id[1])
    tokenizer.add_tokens([tokenizers.AddedToken(name, normalized=False) for name, _ in ordered])
    for name, token_id in ordered:
        if tokenizer.token_to_id(name) != token_id:
            got = tokenizer.token_to_id(name)
            raise CheckpointError(f"{folder}: added_tokens.json: {name!r}: expected the next id, {got}, got {token_id}")
    return tokenizer


def convert_turbo(release: Release, contents: Contents) -> Converted:
    """Return the Turbo or Nano checkpoint to be written."""
    tensors = contents.tensors
    files = read_voices(release.model.parent)
    stored = turbo_shapes(tensors)
    check(unchanged(stored), tensors, TURBO_DROPPED)
    size = contents.tokenizer.size
    num_positions, width = stored[POSITIONS]
    if size > stored[EMBEDDINGS][0]:
        expected = f"a tokenizer of at most {stored[EMBEDDINGS][0]} tokens"
        raise CheckpointError(f"{contents.tokenizer.folder}: expected {expected}, got {size} tokens")
    tokenizer_record = contents.tokenizer.built or {}
    voices = {name: read_voice_part(name, file, "t3", TOLD[:2]) for name, file in files.items()}
    for name, voice in voices.items():
        check_turbo_voice(name, voice)
    vocabulary = TurboVocabulary(
        num_text_ids=stored[EMBEDDINGS][0],
        num_codes=START_OF_SPEECH,
        voices={name: tuple(voice["cond_prompt_speech_tokens"][0].tolist()) for name, voice in voices.items()},
        max_model_len=min(MAX_ROWS, num_positions),
        clones=release.codec is not None and release.keeps_recording_encoder,
        tags=tags(tokenizer_record),
    )
    record = {
        "architectures": ["StrettoChatterboxTurboForCausalLM"],
        "model_type": "gpt2",
        NAME: "chatterbox",
        VOCABULARY: vocabulary.to_record(),
        **dict.fromkeys(TOKENS),
        "vocab_size": vocabulary.layout.vocab_size,
        "hidden_size": width,
        "num_hidden_layers": _num_layers(tensors),
        "num_attention_heads": width // GPT2_HEAD,
        "max_position_embeddings": num_positions,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,  # no head over this vocabulary; codes are sampled from `audio_head`
        "dtype": contents.dtype,
    }
    parts = turbo_plan(stored, [voice["speaker_emb"].float().flatten() for voice in voices.values()])
    networks: tuple[Network, ...] = ()
    if release.codec is not None:
        networks = (s3gen(release.codec, files, vocabulary.num_codes, TURBO_FILE),)
    if vocabulary.clones:
        assert release.codec is not None
        condition = {name: tensors[name] for name in stored if name.startswith(CONDITIONS)}
        networks = (*networks, recording_encoder_network(release.codec, TURBO_FILE, condition, TurboRecordingEncoder))
        record[KEY] = {"model_type": "chatterbox_voice", "hidden_size": width}
    return Converted(record, parts, TURBO_DROPPED, networks=networks)


TURBO_DROPPED = ("text_head.weight", "tfmr.wte.weight")


def _num_layers(tensors: Mapping[str, Tensor]) -> int:
    return len({name.split(".")[2] for name in tensors if name.startswith("tfmr.h.")})


def turbo_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Map the names of the Turbo T3 tensors in use to their shapes."""
    tables = (POSITIONS, EMBEDDINGS, SPEECH)
    require(tensors, dict.fromkeys(tables, (None, None)))
    shapes = {name: tuple(tensors[name].shape) for name in tables}
    width = shapes[POSITIONS][1]
    num_speech_ids = END_OF_SPEECH + 1
    if width % GPT2_HEAD or not 0 < width <= MAX_WIDTH or not _num_layers(tensors) or not len(tensors[POSITIONS]):
        expected = f"layers of a width that is a multiple of {GPT2_HEAD}, at most {MAX_WIDTH}, and positions"
        raise CheckpointError(f"{POSITIONS}: expected {expected}, got shape {list(shapes[POSITIONS])}")
    if shapes[SPEECH][0] != num_speech_ids:
        raise CheckpointError(f"{SPEECH}: expected {num_speech_ids} ids, got {shapes[SPEECH][0]}")
    shapes |= {EMBEDDINGS: (shapes[EMBEDDINGS][0], width), SPEECH: (num_speech_ids, width)}
    shapes |= {HEAD: (num_speech_ids, width), HEAD_BIAS: (num_speech_ids,)}
    shapes |= {f"{CONDITIONS}spkr_enc.weight": (width, X_VECTOR), f"{CONDITIONS}spkr_enc.bias": (width,)}
    for layer in range(_num_layers(tensors)):
        shapes |= {f"tfmr.h.{layer}.{name}": shape for name, shape in gpt2_layer(width).items()}
    return shapes | {"tfmr.ln_f.weight": (width,), "tfmr.ln_f.bias": (width,)}


def turbo_plan(stored: Mapping[str, tuple[int, ...]], speakers: list[Tensor]) -> Plan:
    """Return the plan of tensors to write, with a row for each x-vector in `speakers`, float32 [256]."""
    of_voices = [name for name in stored if name.startswith(CONDITIONS)]

    def rows_of_all_ids(text: Tensor, speech: Tensor, *conditions: Tensor) -> Tensor:
        width = text.shape[1]
        tables = [text, text.new_zeros(1, width), speech]
        if text.is_meta:
            return torch.cat([*tables, text.new_empty(len(speakers), width)])
        read = {name: tensor.float() for name, tensor in zip(of_voices, conditions, strict=True)}
        return torch.cat([*tables, *(speaker_row(read, speaker).to(text.dtype) for speaker in speakers)])

    parts = {
        **merged(
            "transformer.wte.weight", rows_of_all_ids, {name: stored[name] for name in (EMBEDDINGS, SPEECH, *of_voices)}
        ),
        HEAD: Part("audio_head.weight", stored[HEAD]),
        HEAD_BIAS: Part("audio_head.bias", stored[HEAD_BIAS]),
    }
    layers = (name for name in stored if name.startswith(LAYERS))
    return parts | {name: Part(f"transformer.{name.removeprefix(LAYERS)}", stored[name]) for name in layers}


def check_turbo_voice(name: str, voice: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if a voice's tensors do not fit the Turbo model."""
    speaker, codes = voice.values()
    if speaker.numel() != X_VECTOR:
        raise CheckpointError(f"voice {name}: expected {X_VECTOR} numbers of a speaker, got {list(speaker.shape)}")
    is_code = codes.ndim == 2 and not codes.is_floating_point() and 0 < codes.numel() <= MAX_TURBO_CODES
    if not is_code or len(codes) != 1 or not 0 <= int(codes.min()) <= int(codes.max()) < START_OF_SPEECH:
        expected = f"codes in [0, {START_OF_SPEECH}), at most {MAX_TURBO_CODES}, [1, n]"
        raise CheckpointError(f"voice {name}: cond_prompt_speech_tokens: expected {expected}")
