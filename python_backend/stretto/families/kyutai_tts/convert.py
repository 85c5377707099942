"""Conversion of Kyutai's releases of text-to-speech models: names and shapes as published, and their file of Mimi.

https://huggingface.co/kyutai/tts-0.75b-en-public: recordings of voices precede the reply, and CFG pairs guide it. A
folder `voices/` in the release may contain recordings, which become named voices. The 1.6B model, whose voices are
attended to, is refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.families.conversion import Contents, Converted, Release
from stretto.families.kyutai_stt.convert import (
    SHARED_EXPECTED,
    backbone_plan,
    backbone_record,
    check_config,
    check_folded,
    check_tokenizer,
    codec_network,
    integer,
)
from stretto.families.kyutai_stt.convert import trained_dtype as trained_dtype
from stretto.families.kyutai_stt.family import FRAME_RATE, PAD
from stretto.families.kyutai_tts.family import MAX_DELAY, NAME, TtsVocabulary
from stretto.families.kyutai_tts.prompt import VOICES, samples_at
from stretto.families.moshi.convert import DEPTH_EXPECTED, depth_plan, depth_spec
from stretto.families.plugin import NAME as FAMILY
from stretto.families.plugin import VOCABULARY
from stretto.untrusted_files import entry
from stretto.weights.loading import Part, Plan

IS_BARE = True  # the tokenizer is SentencePiece's
TOKENIZER_KEY = "tokenizer_name"  # of config.json: file of the tokenizer
EMBEDDINGS = "text_emb.weight"
DEPTH_TEXT = "depformer_text_emb.weight"
MARKS = {"depformer_in.0.weight": "a model of Moshi's kind"}
SAMPLE_RATE = 24_000
MAX_VOICES = 256
EMPTY: dict[str, list[str]] = {"sum": [], "cross": [], "prepend": []}
EXPECTED: dict[str, tuple[Any, ...]] = {  # supported values of config.json
    "model_type": ("tts",),
    **SHARED_EXPECTED,
    **DEPTH_EXPECTED,
    "fuser": (None, {}, EMPTY, {"sum": [], "cross": []}),
}


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, with Mimi from the release's own file."""
    config = contents.config
    if not config:
        raise CheckpointError("--config: expected the release's config.json, got none")
    check_config(config, EXPECTED)
    folder = release.model if release.model.is_dir() else release.model.parent
    voices = recordings(folder / VOICES)
    known = vocabulary(config, tuple(voices))
    check_tokenizer(contents.tokenizer, known.num_text_ids)
    record = {
        **backbone_record(config),
        FAMILY: NAME,
        VOCABULARY: known.to_record(),
        "vocab_size": known.vocab_size,
        "max_position_embeddings": known.max_model_len,
        "tie_word_embeddings": True,  # no head over this vocabulary; text is sampled from `depth.first_head`
        "dtype": contents.dtype,
    }
    width, code_table, depth = record["hidden_size"], known.codebook_size + 1, known.depth
    folded: dict[str, tuple[int, ...]] = {f"emb.{k}.weight": (code_table, width) for k in range(known.num_codebooks)}
    folded |= {f"depformer_in.{w}.weight": (depth.hidden, width) for w in range(1, depth.num_sets)}
    folded |= {f"linears.{k}.weight": (known.codebook_size, depth.hidden) for k in range(1, known.num_codebooks)}
    folded |= {f"depformer_emb.{k}.weight": (code_table, depth.hidden) for k in range(known.num_codebooks - 1)}
    check_folded(contents.tensors, folded)
    codec = codec_network(config, folder, known.num_codebooks, known.codebook_size)
    copies = {f"{VOICES}/{name}.wav": path for name, path in voices.items()}
    parts = plan(config, known, contents.tensors)
    return Converted(record, parts, (), tuple(folded), (codec,), copies=copies)


def recordings(folder: Path) -> dict[str, Path]:
    """Return the recordings of voices in a release, by name in lower case; raise CheckpointError if one is unusable."""
    paths = sorted(folder.glob("*.wav")) if folder.is_dir() else []
    if len(paths) > MAX_VOICES:
        raise CheckpointError(f"{folder}: expected at most {MAX_VOICES} recordings, got {len(paths)}")
    for path in paths:
        samples_at(path, SAMPLE_RATE)
    found = {path.stem.lower(): path for path in paths}
    if len(found) < len(paths):
        raise CheckpointError(f"{folder}: expected names that differ in more than their case, got {len(paths)} files")
    return found


def vocabulary(config: Mapping[str, Any], voices: tuple[str, ...] = ()) -> TtsVocabulary:
    """Return the vocabulary of a release."""
    num_codebooks, delays = integer(config, "dep_q"), config.get("delays")
    if config.get("n_q") != num_codebooks:
        raise CheckpointError(f"config.json: n_q: expected {num_codebooks}, as dep_q, got {shown(config.get('n_q'))}")
    own = delays[1:] if isinstance(delays, list) and delays[:1] == [0] else []
    is_valid = own[:1] == [0] and all(type(each) is int and 0 <= each <= MAX_DELAY for each in own)
    if not is_valid or len(own) != num_codebooks:
        expected = f"0, then {num_codebooks} delays from 0 to {MAX_DELAY}, the first of them 0"
        raise CheckpointError(f"config.json: delays: expected {expected}, got {shown(delays)}")
    settings = entry(config, "tts_config")
    for name in ("second_stream_ahead", "multistream"):
        if settings.get(name) not in (0, None):
            raise CheckpointError(f"config.json: tts_config.{name}: expected 0, got {shown(settings[name])}")
    delay_s = entry(settings, "audio_delay")
    if isinstance(delay_s, bool) or not isinstance(delay_s, int | float) or not 0 <= delay_s * FRAME_RATE <= MAX_DELAY:
        expected = f"seconds in [0, {MAX_DELAY / FRAME_RATE:g}]"
        raise CheckpointError(f"config.json: tts_config.audio_delay: expected {expected}, got {shown(delay_s)}")
    return TtsVocabulary(
        num_text_ids=integer(config, "text_card"),
        num_codebooks=num_codebooks,
        codebook_size=integer(config, "card"),
        delays=tuple(own),
        delay_rows=int(delay_s * FRAME_RATE),
        depth=depth_spec(config, num_codebooks),
        voices=voices,
    )


def plan(config: Mapping[str, Any], known: TtsVocabulary, tensors: Mapping[str, Tensor]) -> Plan:
    """Return the tensors to write, by published name."""
    width, text, size, depth = integer(config, "dim"), known.num_text_ids, known.codebook_size, known.depth

    def others(prefix: str, numbers: range, like: Tensor, num_rows: int) -> list[Tensor]:
        """Return the first rows of further tensors of the same kind as `like`."""
        if like.is_meta:
            return [like.new_empty(num_rows, like.shape[1])] * len(numbers)
        return [tensors[f"{prefix}.{k}.weight"][:num_rows].to(like.dtype) for k in numbers]

    def table(stored: Tensor) -> Tensor:
        """Return the embeddings of text, of a wish, of the initial text, of our own ids, and of all codes, [V, H]."""
        codes = others("emb", range(known.num_codebooks), stored, size + 1)
        own = [stored[PAD : PAD + 1], stored[text:], stored.new_zeros(2, width)]
        return torch.cat([stored[:text], *own, *codes])

    def head(stored: Tensor) -> Tensor:
        """Return the head of text, and a row for a wish, which is never sampled."""
        return torch.cat([stored, stored.new_zeros(1, width)])

    def depth_table(stored: Tensor) -> Tensor:
        """Return the embeddings of the ids that the depth transformer reads; it never reads initial ids."""
        codes = others("depformer_emb", range(known.num_codebooks - 1), stored, size)
        return torch.cat([stored[:text], stored[PAD : PAD + 1], *codes])

    def projections(stored: Tensor) -> Tensor:
        return torch.cat([stored, *others("depformer_in", range(1, depth.num_sets), stored, depth.hidden)])

    def heads(stored: Tensor) -> Tensor:
        return torch.stack([stored, *others("linears", range(1, known.num_codebooks), stored, size)])

    return {
        **backbone_plan(config, tensors),
        EMBEDDINGS: Part("model.embed_tokens.weight", (text + 1, width), table),
        "text_linear.weight": Part("depth.first_head", (text, width), head),
        DEPTH_TEXT: Part("depth.embed", (text + 1, depth.hidden), depth_table),
        "depformer_in.0.weight": Part("depth.project.weight", (depth.hidden, width), projections),
        "linears.0.weight": Part("depth.heads", (size, depth.hidden), heads),
        **depth_plan(depth, depth.num_sets),
    }
