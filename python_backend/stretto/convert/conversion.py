"""Conversion of a release to a directory that vLLM loads. Nothing is written until everything fits."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from stretto.convert import codec
from stretto.convert.release import audio_tokenizer_of, notes_on, published, read_contents, read_defaults
from stretto.errors import CheckpointError, shown
from stretto.families.conversion import AUDIO_TOKENIZER, AudioTokenizer, Network, Release, Tokenizer
from stretto.families.defaults import KEY as SAMPLING
from stretto.families.registry import read_family
from stretto.untrusted_files import UNPARSABLE
from stretto.weights.tensors import (
    Entry,
    Part,
    Plan,
    Progress,
    Written,
    check,
    copy_file,
    write_file,
    write_json,
    write_shards,
)


@dataclass(frozen=True)
class ConvertedNetwork:
    """Further network of a checkpoint, in a separate folder with `config.json` and `model.safetensors`.

    Attributes:
        folder: Name of the folder.
        record: Its config.json.
        entries: Its tensors, in the stored dtype.
    """

    folder: str
    record: dict[str, Any]
    entries: list[Entry]

    @classmethod
    def from_network(cls, network: Network, tensors: Mapping[str, Tensor]) -> "ConvertedNetwork":
        """Return the network with its own tensors or, by default, `tensors`; raise CheckpointError for mismatches."""
        tensors = tensors if network.tensors is None else network.tensors
        check(network.plan, {name: tensors[name] for name in network.plan if name in tensors}, ())
        entries = [
            Entry(part.name, tensors[name].dtype, part.written, partial(_read, part, tensors, name))
            for name, part in network.plan.items()
        ]
        return cls(network.folder, network.record, entries)

    def write(self, checkpoint: Path, progress: Progress) -> list[Written]:
        """Write the folder and its files."""
        folder = checkpoint / self.folder
        folder.mkdir()
        files = [write_json(folder / "config.json", self.record)]
        files.append(write_file(folder / "model.safetensors", self.entries, progress))
        return [replace(file, name=f"{self.folder}/{file.name}") for file in files]


@dataclass(frozen=True)
class Conversion:
    """Everything that will be written.

    Attributes:
        record: config.json.
        entries: Tensors of the language model.
        dropped: Shapes of published tensors that are not used, by name.
        tokenizer: Tokenizer of text.
        codec_files: Files of the codec to copy.
        codec_copy: The codec inside the release, if it is written from there.
        ssl_tokenizer: Audio tokenizer, if one is written.
        notes: Findings that an operator may want to know.
        networks: Further networks.
    """

    record: dict[str, Any]
    entries: list[Entry]
    dropped: dict[str, list[int]]
    tokenizer: Tokenizer
    codec_files: list[Path]
    codec_copy: codec.Copy | None
    ssl_tokenizer: AudioTokenizer | None
    notes: list[str]
    networks: list[ConvertedNetwork]

    @property
    def num_bytes(self) -> int:
        parts = [part.entries for part in (self.codec_copy, self.ssl_tokenizer, *self.networks) if part]
        return sum(each.num_bytes for each in chain(self.entries, *parts))


def plan(release: Release) -> Conversion:
    """Read everything except the tensors' values; CheckpointError names the parts that do not fit."""
    family_files = published(release)
    if release.ssl_tokenizer and audio_tokenizer_of(release.family_name) is None:
        raise CheckpointError(
            f"--ssl-tokenizer: {release.family} takes no audio tokenizer, got {release.ssl_tokenizer}"
        )
    contents = read_contents(release)
    tensors = contents.tensors
    try:
        made = family_files.convert(release, contents)
    except (*UNPARSABLE, RuntimeError, StrictDataclassError) as error:
        place = release.config or release.model
        raise CheckpointError(
            f"{place}: cannot be read as a release of {release.family}: {shown(error, 200)}"
        ) from error
    sampling, defaults = read_defaults(release, read_family(made.record), family_files.GENERATION)
    record = made.record | ({SAMPLING: sampling} if sampling else {})
    family = read_family(record)
    networks = [ConvertedNetwork.from_network(each, tensors) for each in made.networks]
    elsewhere = {*made.folded, *(name for each in made.networks for name in each.plan)}
    unused = [name for name in check(made.plan, tensors, (*made.dropped, *elsewhere)) if name not in elsewhere]
    is_made = release.keeps_codec or any(each.folder == "codec" for each in made.networks)
    files = codec.check_directory(release.codec, family) if release.codec and not is_made else []
    copy = None
    if release.keeps_codec:
        copy = codec.Copy.from_tensors(family, release.codec, contents.config, tensors, family_files.CODEC)
    hears = _tokenizer(release, len(family.layout.audio[0]))
    dropped_shapes = {name: list(tensors[name].shape) for name in unused} | (hears.dropped if hears else {})
    entries, notes = _entries(made.plan, tensors, contents.dtype), [*notes_on(contents, release), *defaults]
    return Conversion(record, entries, dropped_shapes, contents.tokenizer, files, copy, hears, notes, networks)


def _tokenizer(release: Release, num_codes: int) -> AudioTokenizer | None:
    """Return the audio tokenizer in the folder of `--ssl-tokenizer`; None without that option."""
    kind = audio_tokenizer_of(release.family_name)
    if release.ssl_tokenizer is None or kind is None:
        return None
    return kind(release.ssl_tokenizer, num_codes)


def _entries(parts: Plan, tensors: Mapping[str, Tensor], dtype: str) -> list[Entry]:
    return [
        Entry(part.name, getattr(torch, dtype), part.written, partial(_read, part, tensors, name))
        for name, part in parts.items()
    ]


def _read(part: Part, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    return part.edit(tensors[name]) if part.edit else tensors[name]


@contextmanager
def fresh_directory(out: Path) -> Iterator[Path]:
    """Yield a directory that becomes `out` once everything is written, and is removed on failure.

    Leftovers of an interrupted run are replaced.

    Raises:
        CheckpointError: If `out` exists and is not an empty directory.
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


def write(conversion: Conversion, out: Path, max_bytes: int, progress: Progress) -> list[Written]:
    """Write all files, or none if anything fails."""
    with fresh_directory(out) as folder:
        files = write_shards(folder, conversion.entries, max_bytes, progress)
        files.append(write_json(folder / "config.json", conversion.record))
        for path in conversion.tokenizer.files:
            files.append(copy_file(path, folder / path.name, path.name))
        if conversion.tokenizer.made is not None:
            files.append(write_json(folder / "tokenizer.json", dict(conversion.tokenizer.made)))
        if conversion.codec_files or conversion.codec_copy:
            (folder / "codec").mkdir()
        for path in conversion.codec_files:
            files.append(copy_file(path, folder / "codec" / path.name, f"codec/{path.name}"))
        if conversion.codec_copy:
            files += conversion.codec_copy.write(folder / "codec", progress)
        if conversion.ssl_tokenizer:
            (folder / AUDIO_TOKENIZER).mkdir()
            files += conversion.ssl_tokenizer.write(folder / AUDIO_TOKENIZER, progress)
        for each in conversion.networks:
            files += each.write(folder, progress)
    return files
