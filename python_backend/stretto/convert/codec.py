"""Codec of a checkpoint: a folder published by its authors, or the copy inside a release's weights."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from stretto.codecs.registry import codec_marks, codec_module, codecs_in_transformers, load_codec
from stretto.convert.release import marks
from stretto.errors import CheckpointError
from stretto.families.base import Family
from stretto.untrusted_files import UNPARSABLE, released_file
from stretto.weights.loading import load_config
from stretto.weights.tensors import Entry, Part, Progress, Written, check, shapes_of, write_file, write_json

WEIGHTS = (".bin", ".pt", ".pth", ".safetensors")
FILES = (".json", ".yaml", *WEIGHTS)
SUFFIX = ".safetensors"
# Tensors that identify the contents of a file that is not the codec; codecs and converters of families have more.
MARKS = {
    "model.embed_tokens.weight": "a language model",
    "language_model.model.embed_tokens.weight": "a language model",
    "decoder_2.model.0.weight_g": "a codec in the layout of its authors' own code",
}


def check_directory(folder: Path, family: Family) -> list[Path]:
    """Return the codec's files; CheckpointError if the folder holds another codec than the family's."""
    try:
        published_shape = getattr(codec_module(family.codec), "published_shape", None)
    except KeyError as error:
        raise CheckpointError(f"{folder}: {error.args[0]}") from error
    if published_shape is None:
        raise CheckpointError(f"{folder}: no reader for what is published of codec {family.codec!r}")
    found = published_shape(folder)
    expected = (family.num_codebooks, family.layout.codebook_size)
    if found != expected:
        raise CheckpointError(f"{folder}: expected {expected[0]} codebooks of {expected[1]} codes, got {found}")
    names = sorted(path.name for path in folder.iterdir() if path.suffix in FILES and not path.is_dir())
    if any(name.endswith(SUFFIX) for name in names):
        names = [name for name in names if not name.endswith(".bin")]  # the same weights once more
    files = [released_file(folder, name) for name in names]
    if not any(path.suffix in WEIGHTS for path in files):
        known = f"{', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}"
        raise CheckpointError(f"{folder}: expected weights ({known}) and the codec's parameters, got no weights")
    try:
        # as the server does, so that a file that does not fit is reported before it is copied
        load_codec(family.codec, folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_holds(files)}") from error
    return files


def _holds(files: list[Path]) -> str:
    """Return a description of the weights in a codec's files, for an error message."""
    found = []
    for path in files:
        if path.suffix != SUFFIX:
            continue
        with suppress(SafetensorError, OSError), safe_open(path, framework="pt") as file:
            names = sorted(file.keys())
            kind = next(
                (kind for name, kind in (MARKS | codec_marks() | marks()).items() if name in names),
                "no codec that is known",
            )
            shape = file.get_slice(names[0]).get_shape() if names else []
            found.append(f"{path.name} seems to hold {kind}: {len(names)} tensors, the first {names[:1]} {shape}")
    others = [path.name for path in files if path.suffix in WEIGHTS and path.suffix != SUFFIX]
    return ", ".join([*found, *others])


@dataclass(frozen=True)
class Copy:
    """Copy of a codec inside a release, to be written in transformers' layout.

    Attributes:
        record: Its config.json.
        entries: Its tensors.
    """

    record: dict[str, Any]
    entries: list[Entry]

    @classmethod
    def from_tensors(
        cls, family: Family, folder: Path | None, release: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str
    ) -> "Copy":
        """Return the copy formed by the tensors under `prefix`.

        Args:
            family: Family of the release.
            folder: Folder of the published codec, whose config.json is used; None to use the release's.
            release: config.json of the release. Its `codec_config` is used if present, else the defaults of
                transformers' class.
            tensors: Tensors of the release.
            prefix: Prefix of the names of the copy's tensors.

        Raises:
            CheckpointError: If the family's codec has no such copy, or its tensors do not fit.
        """
        classes = getattr(codec_module(family.codec), "TRANSFORMERS", None)
        if classes is None:
            expected = f"a copy of {', '.join(codecs_in_transformers())}"
            raise CheckpointError(f"{family.name}: expected {expected}, got {family.codec}")
        config_class, model_class = classes
        try:
            numbers = dict(release.get("codec_config") or {})
            config = load_config(config_class, folder) if folder else config_class.from_dict(numbers)
        except (*UNPARSABLE, StrictDataclassError) as error:
            said = " ".join(str(error).split())
            raise CheckpointError(f"config.json: codec_config: not the parameters of {family.codec}: {said}") from error
        plan = {f"{prefix}{name}": Part(name, shape) for name, shape in shapes_of(model_class, config).items()}
        check(plan, {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}, ())
        entries = [
            Entry(part.name, tensors[name].dtype, part.stored, partial(tensors.__getitem__, name))
            for name, part in plan.items()
        ]
        return cls({**config.to_dict(), "architectures": [model_class.__name__]}, entries)

    def write(self, folder: Path, progress: Progress) -> list[Written]:
        """Write `config.json` and `model.safetensors`."""
        files = [write_json(folder / "config.json", self.record)]
        files.append(write_file(folder / "model.safetensors", self.entries, progress))
        return [replace(file, name=f"codec/{file.name}") for file in files]
