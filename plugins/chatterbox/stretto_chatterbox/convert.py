"""Conversion of Chatterbox releases (https://huggingface.co/ResembleAI/chatterbox).

The parts for Turbo and Nano are in `turbo.py`. Releases have no config.json, so hyperparameters come from the authors'
code (`T3Config`). `conds.pt` contains the default voice, and `voices/<name>.pt`, as written by the authors'
`Conditionals.save`, further voices. Only tensors are read from them.

A voice's part of a prompt depends only on its file: the projected x-vector of the speaker, 32 rows that a perceiver
computes from codes, and one row for the emotion. These rows are computed here and stored in the embedding table.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from stretto.errors import CheckpointError
from stretto.family.audio_format import KEY
from stretto.family.conversion import (
    Contents,
    Converted,
    Network,
    Release,
    Tokenizer,
    common_record,
    merged,
    unchanged,
)
from stretto.family.layers import layers_plan
from stretto.family.plugin import MAX_ID
from stretto.family.text import TOKENIZER_FILE, TextTokenizer
from stretto.untrusted_files import json_object, released_file
from stretto.weights.backbones import read_backbone, shapes
from stretto.weights.loading import Part, Plan, check, require
from stretto_chatterbox.family import (
    END_OF_SPEECH,
    SPACE,
    START_OF_SPEECH,
    ChatterboxVocabulary,
)
from stretto_chatterbox.languages import CANGJIE_FILE, LANGUAGES, read_cangjie
from stretto_chatterbox.languages import FOLDER as LANGUAGE_FOLDER
from stretto_chatterbox.release import (
    EMBEDDINGS,
    FILE,
    HEAD,
    LAYERS,
    MAX_ROWS,
    MULTILINGUAL_FILE,
    MULTILINGUAL_VOICE_ENCODER,
    TOLD,
    TURBO_FILE,
    VOICE_ENCODER_FILE,
    X_VECTOR,
    described,
    read_voice_part,
    read_voices,
    recording_encoder_network,
    s3gen,
)
from stretto_chatterbox.turbo import POSITIONS, convert_turbo, turbo_tokenizer
from stretto_chatterbox.voices import (
    CONDITIONS,
    MAX_CODES,
    PERCEIVER,
    SPEECH,
    SPEECH_POSITIONS,
    RecordingEncoder,
    emotion_row,
    voice_rows,
)


def recording_encoder(folder: Path, vocab: ChatterboxVocabulary, t3: Mapping[str, Tensor]) -> Network:
    """Return the networks that encode recordings, and the tensors that turn their results into prompt rows."""
    if vocab.num_speech_positions < MAX_CODES:
        expected = f"at least {MAX_CODES} rows"
        raise CheckpointError(f"{SPEECH_POSITIONS}: expected {expected}, got {vocab.num_speech_positions}")
    rows = {SPEECH: vocab.num_codes, SPEECH_POSITIONS: MAX_CODES}
    condition = {name: t3[name] for name in t3 if name.startswith(CONDITIONS)}
    condition |= {name: t3[name][:size].clone() for name, size in rows.items()}
    names = (MULTILINGUAL_FILE, MULTILINGUAL_VOICE_ENCODER) if vocab.languages else (FILE, VOICE_ENCODER_FILE)
    return recording_encoder_network(folder, names[0], condition, RecordingEncoder, names[1])


IS_BARE = True  # releases have no config
BACKBONE = "Llama_520M"  # the authors' name for the backbone's config
# Backbone (`LLAMA_520M_CONFIG_DICT`, chatterbox/models/t3/llama_configs.py).
LLAMA_520M = {
    "model_type": "llama",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 30,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 64,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "attention_bias": False,
    "mlp_bias": False,
}
TEXT_POSITIONS = "text_pos_emb.emb.weight"
DROPPED = ("text_head.weight", "tfmr.embed_tokens.weight")  # a head used only in training, and an unused table
NUM_MULTILINGUAL_IDS = 2454  # number of text ids in the multilingual release, by which it is recognised
MULTILINGUAL_TOKENIZER = "grapheme_mtl_merged_expanded_v1.json"
T3_FILES = "t3_*.safetensors"  # language models; some release folders contain several


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written: all embeddings in one table, and a head over the speech ids."""
    if POSITIONS in contents.tensors:
        return convert_turbo(release, contents)
    backbone = read_backbone(BACKBONE, release.backbone, release.tokenizer, {BACKBONE: LLAMA_520M})
    files = read_voices(release.model.parent)
    voices = {name: read_voice_part(name, file, "t3", TOLD) for name, file in files.items()}
    vocab = vocabulary(contents.tensors, contents.tokenizer, tuple(voices))
    vocab = replace(vocab, clones=release.codec is not None and release.keeps_recording_encoder)
    stored = published_shapes(backbone, vocab)
    check(unchanged(stored), contents.tensors, ())
    for name, voice in voices.items():
        check_voice(name, voice, vocab)
    record = {
        "architectures": ["StrettoLlamaForCausalLM"],
        **backbone,
        **common_record("chatterbox", vocab, vocab.layout.vocab_size, contents),
    }
    parts = plan(vocab, stored, list(voices.values()))
    is_multilingual = bool(vocab.languages)
    networks: tuple[Network, ...] = ()
    if release.codec is not None:
        file = MULTILINGUAL_FILE if is_multilingual else FILE
        networks = (s3gen(release.codec, files, vocab.num_codes, file, leaves_out_last=is_multilingual),)
    if vocab.clones:
        assert release.codec is not None
        networks = (*networks, recording_encoder(release.codec, vocab, contents.tensors))
        record[KEY] = {"model_type": "chatterbox_voice", "hidden_size": backbone["hidden_size"]}
    copies = {}
    if vocab.has_cangjie:
        copies[f"{LANGUAGE_FOLDER}/{CANGJIE_FILE}"] = released_file(release.tokenizer, CANGJIE_FILE)
        read_cangjie(released_file(release.tokenizer, CANGJIE_FILE))
    return Converted(record, parts, DROPPED, networks=networks, copies=copies)


def notes(config: Mapping[str, Any], embeddings: Tensor, family: str) -> list[str]:
    """Return a note that, unlike in the authors' code, generated audio has no watermark."""
    return ["samples will have no watermark: its authors add theirs (Perth) after the model"]


def vocabulary(tensors: Mapping[str, Tensor], tokenizer: Tokenizer, voices: tuple[str, ...]) -> ChatterboxVocabulary:
    """Return the vocabulary; raise CheckpointError if the release is not supported."""
    require(tensors, dict.fromkeys((EMBEDDINGS, SPEECH, TEXT_POSITIONS, SPEECH_POSITIONS)))
    num_text_ids, num_speech_ids, num_text_positions, num_speech_positions = (
        len(tensors[name]) for name in (EMBEDDINGS, SPEECH, TEXT_POSITIONS, SPEECH_POSITIONS)
    )
    if not END_OF_SPEECH + 1 < num_speech_ids <= MAX_ID:
        expected = f"more than {END_OF_SPEECH + 1} ids, and at most {MAX_ID}"
        raise CheckpointError(f"{SPEECH}: expected {expected}, got {num_speech_ids}")
    ids = tokenizer.ids_of((SPACE,), num_text_ids)
    languages: tuple[str, ...] = ()
    if num_text_ids == NUM_MULTILINGUAL_IDS:
        languages = tuple(code for code in LANGUAGES if f"[{code}]" in ids)
        if not languages:
            raise CheckpointError(f"{tokenizer.folder}: expected a tokenizer with language tokens, such as [fr]")
    return ChatterboxVocabulary(
        num_text_ids=num_text_ids,
        num_codes=START_OF_SPEECH,
        num_speech_ids=num_speech_ids,
        num_text_positions=num_text_positions,
        num_speech_positions=num_speech_positions,
        num_voice_rows=2 + _num_queries(tensors),
        voices=voices,
        max_model_len=min(MAX_ROWS, num_speech_positions),
        languages=languages,
        has_cangjie=bool(languages) and os.path.lexists(tokenizer.folder / CANGJIE_FILE),
    )


def _num_queries(tensors: Mapping[str, Tensor]) -> int:
    name = f"{PERCEIVER}pre_attention_query"
    require(tensors, {name: (1, None, None)})
    return tensors[name].shape[1]


def published_shapes(backbone: dict[str, Any], vocab: ChatterboxVocabulary) -> dict[str, tuple[int, ...]]:
    """Map the names of all T3 tensors to their shapes."""
    width = backbone["hidden_size"]
    shapes_by_name: dict[str, tuple[int, ...]] = {
        EMBEDDINGS: (vocab.num_text_ids, width),
        SPEECH: (vocab.num_speech_ids, width),
        TEXT_POSITIONS: (vocab.num_text_positions, width),
        SPEECH_POSITIONS: (vocab.num_speech_positions, width),
        "text_head.weight": (vocab.num_text_ids, width),
        HEAD: (vocab.num_speech_ids, width),
        "tfmr.embed_tokens.weight": (8, width),
        f"{CONDITIONS}spkr_enc.weight": (width, X_VECTOR),
        f"{CONDITIONS}spkr_enc.bias": (width,),
        f"{CONDITIONS}emotion_adv_fc.weight": (width, 1),
        f"{PERCEIVER}pre_attention_query": (1, vocab.num_voice_rows - 2, width),
    }
    for name in ("norm", "to_q", "to_k", "to_v", "proj_out"):
        shapes_by_name[f"{PERCEIVER}attn.{name}.weight"] = (width,) if name == "norm" else (width, width)
        shapes_by_name[f"{PERCEIVER}attn.{name}.bias"] = (width,)
    layers = shapes({**backbone, "vocab_size": 8, "tie_word_embeddings": True})
    names = (name for name in layers if name.startswith(("model.layers.", "model.norm.")))
    return shapes_by_name | {f"{LAYERS}{name.removeprefix('model.')}": layers[name] for name in names}


def plan(
    vocab: ChatterboxVocabulary, stored: Mapping[str, tuple[int, ...]], voices: list[Mapping[str, Tensor]]
) -> Plan:
    """Return the plan of tensors to write, with rows for `voices`, the T3 tensors of each voice."""
    of_voices = [name for name in stored if name.startswith(CONDITIONS)]
    names = (EMBEDDINGS, SPEECH, TEXT_POSITIONS, SPEECH_POSITIONS, *of_voices)

    def rows_of_all_ids(*tensors: Tensor) -> Tensor:
        text, speech, text_positions, speech_positions, *conditions = tensors
        tables = [text, text.new_zeros(1, text.shape[1]), _end_last(speech), text_positions, speech_positions]
        if text.is_meta:
            return torch.cat([*tables, text.new_empty(len(voices) * vocab.num_voice_rows, text.shape[1])])
        read = dict(zip(of_voices, conditions, strict=True)) | {SPEECH: speech, SPEECH_POSITIONS: speech_positions}
        read = {name: tensor.float() for name, tensor in read.items()}
        return torch.cat([*tables, *(_voice_rows(read, voice).to(text.dtype) for voice in voices)])

    return {
        **merged("model.embed_tokens.weight", rows_of_all_ids, {name: stored[name] for name in names}),
        HEAD: Part("audio_head.weight", stored[HEAD], _end_last),
        **layers_plan(stored, LAYERS),
    }


def _end_last(table: Tensor) -> Tensor:
    """Move the end id's row to the end of a table over the published speech ids."""
    return torch.cat([table[:END_OF_SPEECH], table[END_OF_SPEECH + 1 :], table[END_OF_SPEECH : END_OF_SPEECH + 1]])


def _voice_rows(tensors: Mapping[str, Tensor], voice: Mapping[str, Tensor]) -> Tensor:
    """Compute all embedding rows of a voice file, float32 [n, H]."""
    speaker, codes, emotion = (voice[name] for name in TOLD)
    rows = voice_rows(tensors, speaker.float().flatten(), codes.long().flatten())
    return torch.cat([rows, emotion_row(tensors, emotion.float().flatten())])


def check_voice(name: str, voice: Mapping[str, Tensor], vocab: ChatterboxVocabulary) -> None:
    """Raise CheckpointError if a voice's tensors do not fit the model."""
    speaker, codes, emotion = voice.values()
    if speaker.numel() != X_VECTOR or emotion.numel() != 1:
        got = f"{list(speaker.shape)} and {list(emotion.shape)}"
        raise CheckpointError(
            f"voice {name}: expected {X_VECTOR} speaker numbers and one emotion value, got shapes {got}"
        )
    is_code = codes.ndim == 2 and not codes.is_floating_point() and 0 < codes.numel() <= vocab.num_speech_positions
    if not is_code or len(codes) != 1 or not 0 <= int(codes.min()) <= int(codes.max()) < vocab.num_speech_ids:
        expected = f"ids of shape [1, n], n <= {vocab.num_speech_positions}, in [0, {vocab.num_speech_ids})"
        raise CheckpointError(f"voice {name}: cond_prompt_speech_tokens: expected {expected}, got {described(codes)}")


def located(release: Release) -> Release:
    """Return the release with the path of its language model. By default, the codec is in the same folder.

    No config is read: releases have none, except for a YAML file of Turbo that nothing needs.
    """
    release = replace(release, config=None)
    if not release.model.is_dir():
        return release
    names = sorted(path.name for path in release.model.glob(T3_FILES))
    if len(names) != 1:
        expected = f"one file {T3_FILES}; name it by --model"
        raise CheckpointError(f"{release.model}: expected {expected}, got {', '.join(names) or 'none'}")
    has_codec = any((release.model / name).exists() for name in (FILE, TURBO_FILE, MULTILINGUAL_FILE))
    codec = release.model if release.codec is None and has_codec else release.codec
    return replace(release, model=released_file(release.model, names[0]), codec=codec)


def own_tokenizer(release: Release, tensors: Mapping[str, Tensor]) -> Tokenizer:
    """Return the tokenizer of a release, changed so that no text can spell a marker."""
    if POSITIONS in tensors:
        return turbo_tokenizer(release.tokenizer)
    is_multilingual = EMBEDDINGS in tensors and len(tensors[EMBEDDINGS]) == NUM_MULTILINGUAL_IDS
    path = released_file(release.tokenizer, MULTILINGUAL_TOKENIZER if is_multilingual else TOKENIZER_FILE)
    record = json_object(path)
    try:
        for token in record["added_tokens"]:
            token["special"] = True
        tokens = TextTokenizer(tokenizers.Tokenizer.from_str(json.dumps(record)), spells_bytes=False).tokens
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(f"{path}: cannot be loaded as a tokenizer: {error!r}") from error
    if not tokens:
        raise CheckpointError(f"{path}: expected a tokenizer with at least one token, got none")
    return Tokenizer(release.tokenizer, 1 + max(tokens), tokens, record)
