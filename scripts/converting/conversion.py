"""One conversion: a release in, a directory that vLLM loads out. Nothing is written before everything fits."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from python_backend.errors import CheckpointError
from python_backend.families.registry import NAME, VOCABULARY, read_family
from python_backend.preprocessing.ssl_tokenizer import FOLDER
from scripts.converting import bagpiper, codec, opuslm, shards
from scripts.converting.backbone import config_of, read_backbone, shapes
from scripts.converting.release import Tokenizer, entry, read_tensors, read_yaml
from scripts.converting.shards import Entry, Written
from scripts.converting.ssl_tokenizer import SslTokenizer
from scripts.converting.tensors import Part, Plan, check

FAMILIES = ("bagpiper", "opuslm", "opuslm-dialogue")
DTYPES = ("bfloat16", "float16", "float32")
Tell = Callable[[str, int], shards.Progress]


@dataclass(frozen=True)
class Release:
    """What is to be converted. backbone, audio_config: where the numbers lie that the release only names.

    audio: what the operator says of the audio tower. dtype: None means what the release was trained in.
    keeps_codec: write the codec from the copy in the file; `codec` then only says its numbers. ssl_tokenizer: the
    directory of XEUS, with which OpusLM hears samples.
    """

    family: str
    model: Path
    config: Path
    tokenizer: Path
    codec: Path | None = None
    ssl_tokenizer: Path | None = None
    keeps_codec: bool = False
    backbone: Path | None = None
    audio_config: Path | None = None
    audio: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None


@dataclass(frozen=True)
class Conversion:
    """What will be written. dropped: published tensors that are not served. notes: what was found in the files that
    an operator may want to know."""

    record: dict[str, Any]
    entries: list[Entry]
    dropped: dict[str, list[int]]
    tokenizer: Tokenizer
    codec_files: list[Path]
    codec_copy: codec.Copy | None
    ssl_tokenizer: SslTokenizer | None
    notes: list[str]

    @property
    def num_bytes(self) -> int:
        parts = [part.entries for part in (self.codec_copy, self.ssl_tokenizer) if part]
        return sum(each.num_bytes for each in chain(self.entries, *parts))


def plan(release: Release) -> Conversion:
    """Reads everything but the tensors' contents; CheckpointError says what does not fit."""
    config, tensors = read_yaml(release.config), read_tensors(release.model)
    tokenizer = Tokenizer.at(release.tokenizer)
    is_bagpiper = release.family == "bagpiper"
    tag = entry(config, "model.model_hf_tag" if is_bagpiper else "transformer_conf.hf_model_tag")
    backbone = read_backbone(tag, release.backbone, release.tokenizer)
    dtype = release.dtype or trained_dtype(config, tensors, is_bagpiper)
    if is_bagpiper:
        record, parts, dropped = _bagpiper(release, config, tensors, tokenizer, backbone | {"dtype": dtype})
    else:
        record, parts, dropped = _opuslm(release, config, tensors, tokenizer, backbone | {"dtype": dtype})
    family = read_family(record)
    unused = check(parts, tensors, dropped)
    files = codec.check_directory(release.codec, family) if release.codec and not release.keeps_codec else []
    copy = codec.Copy.of(release.codec, tensors, bagpiper.CODEC) if release.keeps_codec else None
    hears = SslTokenizer.of(release.ssl_tokenizer, len(family.layout.audio[0])) if release.ssl_tokenizer else None
    dropped_shapes = {name: list(tensors[name].shape) for name in unused} | (hears.dropped if hears else {})
    notes = _notes(tensors, dtype, is_bagpiper) + _doubts(release.family, config)
    return Conversion(record, _entries(parts, tensors, dtype), dropped_shapes, tokenizer, files, copy, hears, notes)


Made = tuple[dict[str, Any], Plan, tuple[str, ...]]


def _bagpiper(
    release: Release, config: dict[str, Any], tensors: Mapping[str, Tensor], tokenizer: Tokenizer, backbone: dict
) -> Made:
    if release.ssl_tokenizer:
        raise CheckpointError("Bagpiper hears through its own encoder: --ssl-tokenizer is for OpusLM")
    vocabulary = bagpiper.vocabulary(config, tensors, tokenizer, release.codec)
    audio = bagpiper.tower_config(config, release.audio_config, release.audio)
    record = config_of(backbone, vocabulary.vocab_size, backbone["dtype"])
    record |= {NAME: "bagpiper", VOCABULARY: vocabulary.to_record(), "audio_config": audio}
    return record, bagpiper.plan(shapes(record), record["hidden_size"], audio), bagpiper.DROPPED


def _opuslm(
    release: Release, config: dict[str, Any], tensors: Mapping[str, Tensor], tokenizer: Tokenizer, backbone: dict
) -> Made:
    if release.keeps_codec:
        raise CheckpointError("OpusLM's file holds no copy of its codec: --codec must say where it lies")
    name = release.family.replace("-", "_")
    vocabulary = opuslm.vocabulary(config, tokenizer, is_dialogue=name == "opuslm_dialogue")
    record = config_of(backbone, vocabulary.vocab_size, backbone["dtype"])
    # Trained on sequences of this length, whatever the backbone was trained on before.
    record["max_position_embeddings"] = entry(config, "transformer_conf").get("n_ctx", 8192)
    record |= {NAME: name, VOCABULARY: vocabulary.to_record()}
    return record, opuslm.plan(shapes(record), record["hidden_size"], tensors), opuslm.DROPPED


def trained_dtype(config: Mapping[str, Any], tensors: Mapping[str, Tensor], is_bagpiper: bool) -> str:
    """What the model computed in while it was trained; the file of the dialogue model is stored in float32, but was
    trained in bfloat16."""
    if is_bagpiper:
        dtype = _found(config, "model.model_conf.dtype")
    else:
        dtype = "bfloat16" if _found(config, "ds_config_dict.bf16.enabled") else None
    dtype = dtype or str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise CheckpointError(f"trained in one of {', '.join(DTYPES)} is expected, got {dtype!r}; --dtype decides")
    return dtype


def _found(config: Mapping[str, Any], dotted: str) -> Any:
    """What lies under `a.b.c`; None where nothing does."""
    with suppress(CheckpointError):
        return entry(config, dotted)
    return None


def _doubts(family: str, config: Mapping[str, Any]) -> list[str]:
    """OpusLM and the dialogue model differ in nothing but how they were trained: the latter on preferences."""
    is_on_preferences = config.get("model") == "dpo"
    if family == "bagpiper" or is_on_preferences == (family == "opuslm-dialogue"):
        return []
    return [f"config.yaml says `model: {config.get('model')}`, which the release of {family} does not: another family?"]


def _notes(tensors: Mapping[str, Tensor], dtype: str, is_bagpiper: bool) -> list[str]:
    table = tensors["model.embed_tokens.weight" if is_bagpiper else "corelm.emb.weight"]
    stored = str(table.dtype).removeprefix("torch.")
    notes = [f"stored in {stored}, written in {dtype}"] if stored != dtype else []
    if not is_bagpiper:
        kind = "zero" if not table[0].any() else "not zero: a row of text carries it eight times"
        notes.append(f"the pad's embedding is {kind}")
    return notes


def _entries(parts: Plan, tensors: Mapping[str, Tensor], dtype: str) -> list[Entry]:
    return [
        Entry(part.name, getattr(torch, dtype), part.written, partial(_read, part, tensors, name))
        for name, part in parts.items()
    ]


def _read(part: Part, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return part.edit(tensors[name]) if part.edit else tensors[name]


@contextmanager
def fresh_directory(out: Path) -> Iterator[Path]:
    """A directory that becomes `out` when everything in it is written, and is removed when something fails.

    CheckpointError where `out` holds something already. What an interrupted run has left behind is replaced.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: expected a directory that is empty or does not exist yet")
    unfinished = out.with_name(f"{out.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.replace(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def write(conversion: Conversion, out: Path, max_bytes: int, progress: shards.Progress) -> list[Written]:
    """Writes everything; all or nothing."""
    with fresh_directory(out) as folder:
        files = shards.write_shards(folder, conversion.entries, max_bytes, progress)
        files.append(shards.write_json(folder / "config.json", conversion.record))
        for path in conversion.tokenizer.files:
            files.append(shards.copy_file(path, folder / path.name, path.name))
        if conversion.codec_files or conversion.codec_copy:
            (folder / "codec").mkdir()
        for path in conversion.codec_files:
            files.append(shards.copy_file(path, folder / "codec" / path.name, f"codec/{path.name}"))
        if conversion.codec_copy:
            files += conversion.codec_copy.write(folder / "codec", progress)
        if conversion.ssl_tokenizer:
            (folder / FOLDER).mkdir()
            files += conversion.ssl_tokenizer.write(folder / FOLDER, progress)
    return files
