"""Conversion of a release to a checkpoint directory. Nothing is written before all parts have been checked.

The codec comes from a folder published by its authors, or from the release's own weights.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stretto.codecs.base import codec_marks, codec_module, codecs_in_transformers, load_codec
from stretto.convert.release import (
    audio_tokenizer_of,
    check_format,
    marks,
    notes_on,
    published,
    read_contents,
    read_defaults,
)
from stretto.errors import CheckpointError, is_panic, shown
from stretto.family.base import Family
from stretto.family.conversion import (
    AUDIO_TOKENIZER,
    AudioTokenizer,
    Contents,
    Nested,
    Network,
    Release,
    Tokenizer,
)
from stretto.family.plugin import SAMPLING, read_family
from stretto.family.text import SENTENCEPIECE_FILE
from stretto.untrusted_files import UNPARSABLE, MissingEntry, released_file, without_keys
from stretto.weights.bounded_networks import bounded_networks
from stretto.weights.loading import (
    DTYPES,
    Part,
    PendingTensor,
    Plan,
    Progress,
    Written,
    check,
    check_shapes,
    copy_file,
    shapes_of,
    shapes_read,
    write_file,
    write_json,
    write_shards,
)
from stretto.weights.pretrained import load_config

WEIGHTS = (".bin", ".pt", ".pth", ".safetensors")
FILES = (".json", ".yaml", *WEIGHTS)
SUFFIX = ".safetensors"
# Tensor names that identify files without the codec, and descriptions of these files. Codecs and the conversion
# modules of families add more.
MARKS = {
    "model.embed_tokens.weight": "a language model",
    "language_model.model.embed_tokens.weight": "a language model",
    "decoder_2.model.0.weight_g": "a codec in the layout of its authors' own code",
}


def check_codec(folder: Path, family: Family) -> list[Path]:
    """Return the files of a codec folder to copy; raise CheckpointError unless it contains the family's codec."""
    try:
        module = codec_module(family.codec)
        published_shape = getattr(module, "published_shape", None)
    except KeyError as error:
        raise CheckpointError(f"{folder}: {error.args[0]}") from error
    if published_shape is None:
        raise CheckpointError(f"{folder}: no reader for the published files of codec {family.codec!r}")
    shape = published_shape(folder)
    expected = (family.num_codebooks, family.layout.codebook_size)
    has_more = getattr(module, "HAS_PREFIXES", False) and shape[0] > expected[0]
    if shape != expected and not (has_more and shape[1] == expected[1]):
        raise CheckpointError(
            f"{folder}: expected {expected[0]} codebooks of {expected[1]} codes, got {shape[0]} of {shape[1]}"
        )
    names = sorted(path.name for path in folder.iterdir() if path.suffix in FILES and not path.is_dir())
    if any(name.endswith(SUFFIX) for name in names):
        names = [name for name in names if not name.endswith(".bin")]  # a second copy of the weights
    files = [released_file(folder, name) for name in names]
    if not any(path.suffix in WEIGHTS for path in files):
        suffixes = f"{', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}"
        raise CheckpointError(f"{folder}: expected weights ({suffixes}) and the codec's parameters, got no weights")
    try:
        # load the codec as the server does, so that a mismatch is reported before anything is copied
        load_codec(family.codec, folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_contents_of(files)}") from error
    return files


def _contents_of(files: list[Path]) -> str:
    """Return a description of the files in a folder that contains no codec, for an error message."""
    descriptions = []
    for path in files:
        if path.suffix != SUFFIX:
            continue
        with suppress(SafetensorError, OSError), safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            description = next(
                (description for name, description in (MARKS | codec_marks() | marks()).items() if name in names),
                "an unknown codec",
            )
            shape = file.get_slice(names[0]).get_shape() if names else []
            descriptions.append(
                f"{path.name} seems to contain {description}: {len(names)} tensors, the first {names[:1]} {shape}"
            )
    others = [path.name for path in files if path.suffix in WEIGHTS and path.suffix != SUFFIX]
    return ", ".join([*descriptions, *others])


@dataclass(frozen=True)
class CodecCopy:
    """Codec contained in a release's weights, to be written in the transformers layout."""

    record: dict[str, Any]
    entries: list[PendingTensor]

    @classmethod
    def from_tensors(
        cls, family: Family, folder: Path | None, release: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str
    ) -> "CodecCopy":
        """Return the codec in the tensors whose names begin with `prefix`; raise CheckpointError if they do not fit.

        Args:
            folder: Folder of the published codec, whose config.json is used; None to use the release's config.
            release: config.json of the release. If `folder` is None, its `codec_config` is used or, if that is missing,
                the defaults of the transformers class.
        """
        classes = getattr(codec_module(family.codec), "TRANSFORMERS", None)
        if classes is None:
            expected = f"a codec among the release's tensors must be one of {', '.join(codecs_in_transformers())}"
            raise CheckpointError(f"{family.name}: {expected}; got {family.codec}, for which transformers has no class")
        config_class, model_class = classes
        try:
            numbers = without_keys(dict(release.get("codec_config") or {}))
            config = load_config(config_class, folder) if folder else config_class.from_dict(numbers)
        except (*UNPARSABLE, StrictDataclassError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(
                f"config.json: codec_config: invalid parameters for {family.codec}: {reason}"
            ) from error
        plan = {f"{prefix}{name}": Part(name, shape) for name, shape in shapes_of(model_class, config).items()}
        check(plan, {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}, ())
        entries = [
            PendingTensor(tensor.name, tensors[name].dtype, tensor.stored, partial(tensors.__getitem__, name))
            for name, tensor in plan.items()
        ]
        return cls({**config.to_dict(), "architectures": [model_class.__name__]}, entries)

    def write(self, folder: Path, progress: Progress) -> list[Written]:
        """Write `config.json` and `model.safetensors` to `folder`."""
        files = [write_json(folder / "config.json", self.record)]
        files.append(write_file(folder / "model.safetensors", self.entries, progress))
        return [replace(file, name=f"codec/{file.name}") for file in files]


@dataclass(frozen=True)
class ConvertedNetwork:
    """Additional network of a checkpoint, in a separate folder with `config.json` and `model.safetensors`."""

    folder: str
    record: dict[str, Any]
    entries: list[PendingTensor]

    @classmethod
    def from_network(cls, network: Network, tensors: Mapping[str, Tensor]) -> "ConvertedNetwork":
        """Return a network's parts to write; raise CheckpointError if a tensor is missing or of wrong shape or dtype.

        Args:
            tensors: Checked tensors of the release by name; ignored if the network has tensors of its own.
        """
        if network.tensors is not None:
            tensors = network.tensors
            check(network.plan, {name: tensors[name] for name in shapes_read(network.plan) if name in tensors}, ())
        odd = sorted(name for name in network.plan if tensors[name].dtype not in DTYPES)
        if odd:
            expected = f"one of the dtypes {', '.join(DTYPES.values())}"
            raise CheckpointError(f"{network.folder}: expected {expected}, got {tensors[odd[0]].dtype} in {odd[0]}")
        entries = [
            PendingTensor(written.name, tensors[name].dtype, written.written, partial(written.read, tensors, name))
            for name, tensor in network.plan.items()
            for written in (tensor, *tensor.also)
        ]
        return cls(network.folder, network.record, entries)

    def write(self, checkpoint: Path, progress: Progress) -> list[Written]:
        """Create the folder in `checkpoint` and write its files."""
        folder = checkpoint / self.folder
        folder.mkdir()
        files = [write_json(folder / "config.json", self.record)]
        files.append(write_file(folder / "model.safetensors", self.entries, progress))
        return [replace(file, name=f"{self.folder}/{file.name}") for file in files]


@dataclass(frozen=True)
class Conversion:
    """All parts of a checkpoint to be written.

    Attributes:
        dropped: Shapes of unused published tensors by name.
        codec_copy: Codec from the release's weights, if there is no folder to copy.
        copies: Files to copy unchanged, by name in the checkpoint.
        nested: Further checkpoints, by the name of their folder in this one.
    """

    record: dict[str, Any]
    entries: list[PendingTensor]
    dropped: dict[str, list[int]]
    tokenizer: Tokenizer
    codec_files: list[Path]
    codec_copy: CodecCopy | None
    ssl_tokenizer: AudioTokenizer | None
    notes: list[str]
    networks: list[ConvertedNetwork]
    copies: Mapping[str, Path]
    nested: Mapping[str, "Conversion"] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        parts = [network.entries for network in (self.codec_copy, self.ssl_tokenizer, *self.networks) if network]
        num_bytes = sum(entry.num_bytes for entry in chain(self.entries, *parts))
        return num_bytes + sum(model.num_bytes for model in self.nested.values())

    @property
    def has_codec(self) -> bool:
        """True if the checkpoint, or one nested in it, will contain a codec."""
        has_codec = self.codec_files or self.codec_copy or any(network.folder == "codec" for network in self.networks)
        return bool(has_codec) or any(model.has_codec for model in self.nested.values())


def plan(release: Release) -> Conversion:
    """Read and check everything in a release except its tensor values; raise CheckpointError if parts do not fit."""
    source = release.config or release.model
    with refusing(f"{source}: cannot be read as a release of {release.family}"), bounded_networks():
        try:
            return _plan(release)
        except MissingEntry as error:
            raise CheckpointError(f"{source}: {error}") from error


@contextmanager
def refusing(message: str) -> Iterator[None]:
    """Replace exceptions of libraries, which may be of any type for invalid values, by a CheckpointError."""
    try:
        yield
    except (CheckpointError, OSError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise CheckpointError(f"{message}: {shown(error, 200)}") from error


def _plan(release: Release) -> Conversion:
    family_files = published(release)
    if release.ssl_tokenizer and audio_tokenizer_of(release.family_name) is None:
        raise CheckpointError(f"--ssl-tokenizer: {release.family} uses no audio tokenizer, got {release.ssl_tokenizer}")
    check_format(release)
    release = family_files.located(release)
    contents = read_contents(release)
    tensors = contents.tensors
    converted = family_files.convert(release, contents)
    sampling, defaults = read_defaults(release, read_family(converted.record), family_files.GENERATION)
    record = converted.record | ({SAMPLING: sampling} if sampling else {})
    family = read_family(record)
    models = [converted, *(nested_model.converted for nested_model in converted.nested)]
    all_networks = [network for model in models for network in model.networks]
    plans = [*(model.plan for model in models), *(network.plan for network in all_networks if network.tensors is None)]
    wanted = {name: shape for plan in plans for name, shape in shapes_read(plan).items()}
    folded = {name for model in models for name in model.folded}
    folded |= {name for network in all_networks if network.tensors is not None for name in network.plan}
    unused = [name for name in check_shapes(wanted, tensors, (*converted.dropped, *folded)) if name not in folded]
    networks = [ConvertedNetwork.from_network(network, tensors) for network in converted.networks]
    nested = {nested_model.folder: _nested(release, contents, nested_model) for nested_model in converted.nested}
    is_made = release.keeps_codec or any(network.folder == "codec" for network in converted.networks)
    files = check_codec(release.codec, family) if release.codec and not is_made else []
    copy = None
    if release.keeps_codec:
        copy = CodecCopy.from_tensors(family, release.codec, contents.config, tensors, family_files.CODEC)
    audio_tokenizer = _tokenizer(release, len(family.layout.audio[0]))
    dropped_shapes = {name: list(tensors[name].shape) for name in unused} | (
        audio_tokenizer.dropped if audio_tokenizer else {}
    )
    entries = _entries(converted.plan, tensors, contents.dtype)
    notes = [*notes_on(contents, release), *defaults]
    tokenizer = converted.tokenizer or contents.tokenizer
    return Conversion(
        record,
        entries,
        dropped_shapes,
        tokenizer,
        files,
        copy,
        audio_tokenizer,
        notes,
        networks,
        converted.copies,
        nested,
    )


def _nested(release: Release, contents: Contents, nested: Nested) -> Conversion:
    """Return the parts of a further language model; raise CheckpointError if a network or a default is invalid."""
    converted = nested.converted
    tensors = contents.tensors
    sampling, notes = read_defaults(release, read_family(converted.record), nested.generation)
    record = converted.record | ({SAMPLING: sampling} if sampling else {})
    read_family(record)
    networks = [ConvertedNetwork.from_network(network, tensors) for network in converted.networks]
    tokenizer = replace(contents.tokenizer, files=(), built=None)
    entries = _entries(converted.plan, tensors, contents.dtype)
    return Conversion(record, entries, {}, tokenizer, [], None, None, notes, networks, converted.copies)


def _tokenizer(release: Release, num_codes: int) -> AudioTokenizer | None:
    """Convert the audio tokenizer given by `--ssl-tokenizer`; return None if the option is not set."""
    tokenizer_class = audio_tokenizer_of(release.family_name)
    if release.ssl_tokenizer is None or tokenizer_class is None:
        return None
    return tokenizer_class(release.ssl_tokenizer, num_codes)


def _entries(parts: Plan, tensors: Mapping[str, Tensor], dtype: str) -> list[PendingTensor]:
    return [
        PendingTensor(
            written.name, written.dtype or getattr(torch, dtype), written.written, partial(written.read, tensors, name)
        )
        for name, tensor in parts.items()
        for written in (tensor, *tensor.also)
    ]


@contextmanager
def fresh_directory(out: Path) -> Iterator[Path]:
    """Yield a temporary directory that is renamed to `out` on success or removed on failure.

    Directories left by an interrupted run are replaced. If `out` exists and is not empty, CheckpointError is raised.
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
    """Write the checkpoint, or nothing if an error occurs."""
    with refusing(f"{out}: cannot be written"), fresh_directory(out) as folder:
        return _write_into(folder, conversion, max_bytes, progress)


def _write_into(folder: Path, conversion: Conversion, max_bytes: int, progress: Progress) -> list[Written]:
    files = write_shards(folder, conversion.entries, max_bytes, progress)
    files.append(write_json(folder / "config.json", conversion.record))
    for path in conversion.tokenizer.files:
        name = SENTENCEPIECE_FILE if path.suffix == Path(SENTENCEPIECE_FILE).suffix else path.name
        files.append(copy_file(path, folder / name, name))
    if conversion.tokenizer.built is not None:
        files.append(write_json(folder / "tokenizer.json", dict(conversion.tokenizer.built)))
    if conversion.codec_files or conversion.codec_copy:
        (folder / "codec").mkdir()
    for path in conversion.codec_files:
        files.append(copy_file(path, folder / "codec" / path.name, f"codec/{path.name}"))
    if conversion.codec_copy:
        files += conversion.codec_copy.write(folder / "codec", progress)
    if conversion.ssl_tokenizer:
        (folder / AUDIO_TOKENIZER).mkdir()
        files += conversion.ssl_tokenizer.write(folder / AUDIO_TOKENIZER, progress)
    for network in conversion.networks:
        files += network.write(folder, progress)
    for name, path in conversion.copies.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        files.append(copy_file(path, folder / name, name))
    for name, inner in conversion.nested.items():
        (folder / name).mkdir()
        written = _write_into(folder / name, inner, max_bytes, progress)
        files += [replace(file, name=f"{name}/{file.name}") for file in written]
    return files
