"""Interface between `stretto convert` and the conversion module of a family."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.base import VOCABULARY, Vocabulary
from stretto.family.plugin import DRAWN, NAME
from stretto.records.prompt import MAX_MAGNITUDE
from stretto.records.sampling import NUMBER_OPTIONS
from stretto.untrusted_files import entry
from stretto.weights.backbones import dtype_of
from stretto.weights.loading import Part, PendingTensor, Plan, Progress, Shape, Written, check

AUDIO_TOKENIZER = "ssl_tokenizer"  # folder in a checkpoint
MAX_INTEGER = (1 << 20) - 1  # of a config; larger than those of any release


@dataclass(frozen=True)
class Release:
    """Release to convert, as given on the command line.

    Attributes:
        model: Weights: a file, a folder or an index.
        config: config.yaml or config.json; None for a family whose releases have none.
        keeps_codec: True to take the codec weights from the model file; `codec` then only provides the codec config.
        backbone: config.json of the backbone, if the release specifies the backbone only by name.
        audio_config: config.json of the audio encoder, if the release specifies the encoder only by name.
        dtype: dtype of the written tensors; None to keep the dtype used in training.
        keeps_recording_encoder: False to omit the additional networks that encode voice recordings.
    """

    family: str
    model: Path
    config: Path | None
    tokenizer: Path
    codec: Path | None = None
    ssl_tokenizer: Path | None = None
    keeps_codec: bool = False
    backbone: Path | None = None
    audio_config: Path | None = None
    audio: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    keeps_recording_encoder: bool = True

    @property
    def folder(self) -> Path:
        """Folder of the release; if `model` is a file, the folder that contains it."""
        return self.model if self.model.is_dir() else self.model.parent

    @property
    def config_folder(self) -> Path:
        """Folder that contains the config file; only for a family whose releases have one."""
        assert self.config is not None, self.family
        return self.config.parent

    @property
    def family_name(self) -> str:
        """Name of the family in a checkpoint's config.json."""
        return self.family.replace("-", "_")


@dataclass(frozen=True)
class Tokenizer:
    """Files of a published tokenizer, to be copied to the checkpoint.

    Attributes:
        size: Largest id plus one.
        built: Contents for tokenizer.json, if it is not among the published files.
    """

    folder: Path
    size: int
    tokens: Mapping[int, str] = field(default_factory=dict)
    built: Mapping[str, Any] | None = None
    files: tuple[Path, ...] = ()

    def ids_of(self, names: Collection[str], num_ids: int) -> dict[str, int]:
        """Return the ids of all tokens by their strings.

        Raises:
            CheckpointError: A name is missing, or there are more than `num_ids` tokens, for which the model has
                embeddings.
        """
        ids = {spelling: token_id for token_id, spelling in self.tokens.items()}
        missing = [name for name in names if name not in ids]
        if missing or self.size > num_ids:
            got = f"{self.size} tokens" + (f", without {', '.join(missing)}" if missing else "")
            expected = f"at most {num_ids} tokens" + (f" with {', '.join(names)}" if names else "")
            raise CheckpointError(f"{self.folder}: expected a tokenizer of {expected}, got {got}")
        return ids


@dataclass(frozen=True)
class Contents:
    """Contents of the files of a release; tensors are read on access."""

    config: dict[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer
    backbone: dict[str, Any]
    dtype: str

    def check_latent_model(self, num_tokens: int) -> None:
        """Raise CheckpointError if the dtype is not float32, or the tokenizer has more than `num_tokens` tokens."""
        self.tokenizer.ids_of((), num_tokens)
        if self.dtype != "float32":
            raise CheckpointError(f"--dtype: expected float32 (latents are fed back in float32), got {self.dtype}")


@dataclass(frozen=True)
class Network:
    """Additional network in a release, written to a separate folder in the checkpoint.

    Attributes:
        plan: Tensors to write, by published name.
        tensors: Published tensors by name; None to use the tensors of the release.
    """

    folder: str
    record: dict[str, Any]
    plan: Plan
    tensors: Mapping[str, Tensor] | None = None


@dataclass(frozen=True)
class Converted:
    """Checkpoint to be written.

    Attributes:
        plan: Tensors to write, by published name.
        dropped: Names, or prefixes of names, of unused tensors.
        folded: Names of tensors that are merged into others.
        tokenizer: Tokenizer to write; None to use the tokenizer of the release.
        copies: Files to copy unchanged, by path in the checkpoint (`folder/name`).
    """

    record: dict[str, Any]
    plan: Plan
    dropped: tuple[str, ...]
    folded: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    tokenizer: Tokenizer | None = None
    copies: Mapping[str, Path] = field(default_factory=dict)
    nested: tuple["Nested", ...] = ()


@dataclass(frozen=True)
class Nested:
    """Further language model in a release, written as a checkpoint without a tokenizer to a separate folder.

    Attributes:
        converted: The checkpoint. Its unused tensors are those that the whole release leaves out.
        generation: Fields of its `speech_sampling` by generation_config.json key, as `Published.GENERATION`.
    """

    folder: str
    converted: Converted
    generation: Mapping[str, tuple[str, ...]]


def common_record(
    family: str, vocabulary: Vocabulary, vocab_size: int, contents: Contents, has_head: bool = False
) -> dict[str, Any]:
    """Return the fields of a checkpoint's config.json that do not depend on its backbone.

    Args:
        has_head: True if the checkpoint has a head over the whole vocabulary; False if ids are sampled from other
            heads, such as `audio_head` or `depth.first_head`.
    """
    return {
        NAME: family,
        VOCABULARY: vocabulary.to_record(),
        "vocab_size": vocab_size,
        "tie_word_embeddings": not has_head,
        "dtype": contents.dtype,
    }


def integer(
    record: Mapping[str, Any],
    path: str,
    most: int = MAX_INTEGER,
    *,
    file: str = "config.json",
) -> int:
    """Return the integer at a dotted path of a config; raise CheckpointError unless it is in [1, `most`]."""
    value = entry(record, path, file)
    if type(value) is not int or not 1 <= value <= most:
        raise CheckpointError(f"{file}: {path}: expected an integer in [1, {most}], got {shown(value)}")
    return value


def unchanged(shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """Return the plan of tensors with these shapes that keep their names."""
    return {name: Part(name, shape) for name, shape in shapes.items()}


def merged(name: str, edit: Callable[..., Tensor], shapes: Mapping[str, Shape]) -> Plan:
    """Return the plan of a tensor that is made from several published ones.

    Args:
        edit: Function of the published tensors, in order.
        shapes: Their shapes by name. The tensor is planned under the first name.
    """
    (first, shape), *others = shapes.items()
    return {first: Part(name, shape, edit, others=dict(others))}


def linear(published: str, ours: str, rows: int, columns: int) -> Plan:
    """Return the plan of a linear layer's weight and bias; both name prefixes end with a dot."""
    return {
        f"{published}weight": Part(f"{ours}weight", (rows, columns)),
        f"{published}bias": Part(f"{ours}bias", (rows,)),
    }


def concatenated(*tensors: Tensor) -> Tensor:
    """Return one table with the rows of all tensors."""
    return torch.cat(tensors)


def stacked(*tensors: Tensor) -> Tensor:
    """Return one tensor that stacks tensors of equal shape along a new first dimension."""
    return torch.stack(tensors)


def check_folded(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError unless the tensors that are merged into others have these shapes."""
    check(unchanged(shapes), {name: tensors[name] for name in shapes if name in tensors}, ())


def weight_normed(directions: Tensor, norms: Tensor) -> Tensor:
    """Return the weights of a layer whose directions [N, …] and norms are published separately.

    They are computed in float64, because the last bit of a float32 norm depends on the processor.
    """
    if directions.is_meta:
        return directions
    return torch._weight_norm(directions.double(), norms.double(), 0).to(directions.dtype)


def in_halves(rows: Tensor, head_dim: int) -> Tensor:
    """Return the rows [H · D, …] of queries or keys, reordered within each head: even rows first, then odd ones.

    A rotary embedding that pairs the halves of a head then gives the same result as one that pairs adjacent rows in the
    original order.
    """
    return rows.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


class AudioTokenizer(Protocol):
    """Audio tokenizer to be written to `ssl_tokenizer/` of the checkpoint.

    Attributes:
        dropped: Shapes of unused published tensors by name.
    """

    @property
    def entries(self) -> Sequence[PendingTensor]: ...

    @property
    def dropped(self) -> dict[str, list[int]]: ...

    def write(self, folder: Path, progress: Progress) -> list[Written]:
        """Write the files to `folder`; call `progress` with the number of bytes after each write."""
        ...


class Published(Protocol):
    """Conversion module of a family. It must define EMBEDDINGS and `convert`; the other names have defaults.

    Attributes:
        EMBEDDINGS: Published name of the embedding table.
        BACKBONE_TAG: config.yaml key for the name of the backbone; None if config.json contains its hyperparameters.
        CODEC: Prefix of the codec's tensors in the model file; empty if the file does not contain the codec.
        GENERATION: Fields of `speech_sampling` by generation_config.json key; empty if releases have no such file.
        MARKS: Maps names of tensors that only releases of this family contain to a description of these releases, for
            error messages.
        IS_BARE: True if releases may have no config, and a tokenizer that is not byte-level.
        IS_FLOAT32: True for a model that is trained and served in float32 only, because latents are fed back.
        AUTHORS_FORMAT: Authors' format, for the error message about a release in transformers format; empty if such
            releases can be converted.
        TRANSFORMERS: Name of the conversion module for releases in transformers format; empty if this one reads both.
        TOKENIZER_KEY: Config key for the name of the tokenizer file, which is a SentencePiece model.
        SSL_TOKENIZER: Class whose `from_folder(folder, num_codes)` converts the folder given as `--ssl-tokenizer`; None
            to reject the option.
    """

    EMBEDDINGS: str
    BACKBONE_TAG: str | None = None
    CODEC: str = ""
    GENERATION: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    MARKS: Mapping[str, str] = MappingProxyType({})
    IS_BARE: bool = False
    IS_FLOAT32: bool = False
    AUTHORS_FORMAT: str = ""
    TRANSFORMERS: str = ""
    TOKENIZER_KEY: str = ""
    SSL_TOKENIZER: Any = None

    @staticmethod
    def trained_dtype(config: Mapping[str, Any]) -> str | None:
        """Return the dtype used in training, or None if the config does not contain it."""
        return dtype_of(config)

    @staticmethod
    def notes(config: Mapping[str, Any], embeddings: Tensor, family: str) -> list[str]:
        """Return remarks about the release for the operator; `embeddings` is the published table, [V, H]."""
        return []

    @staticmethod
    def located(release: Release) -> Release:
        """Return the release with paths resolved; raise CheckpointError if a folder has no or several releases."""
        return release

    @staticmethod
    def own_tensors(release: Release) -> Mapping[str, Tensor] | None:
        """Return the tensors by name if `open_tensors` cannot read the weights' file, otherwise None."""
        return None

    @staticmethod
    def own_tokenizer(release: Release, tensors: Mapping[str, Tensor]) -> Tokenizer | None:
        """Return the text tokenizer if its files are not the usual ones, otherwise None."""
        return None

    def convert(self, release: Release, contents: Contents) -> Converted:
        """Return the checkpoint to be written; raise CheckpointError if parts are missing or contradict each other."""
        ...


Value = TypeVar("Value")


def in_lower_case(named: Mapping[Any, Value], where: str) -> dict[Any, Value]:
    """Return a mapping with its text keys in lower case, because requests name voices and languages in any case.

    Raises:
        CheckpointError: Two names are equal in lower case. The message begins with `where`, their file or entry.
    """
    by_lower_name = {name.lower() if isinstance(name, str) else name: value for name, value in named.items()}
    if len(by_lower_name) < len(named):
        got = ", ".join(sorted(map(str, named), key=str.lower))
        raise CheckpointError(f"{where}: expected names that differ in lower case, got {shown(got, 200)}")
    return by_lower_name


def is_bounded(values: Tensor) -> bool:
    """Return True if all numbers of a voice are finite, with a magnitude of at most MAX_MAGNITUDE.

    Keys and values that are computed from larger ones may be infinite, in KV blocks that other requests reuse.
    """
    return values.numel() == 0 or bool(values.abs().max() <= MAX_MAGNITUDE)  # false for NaN


BOUNDED = f"numbers of magnitude at most {MAX_MAGNITUDE:g}"  # as error messages describe them


def published_by(module: ModuleType) -> Published:
    """Return a conversion module's contents, with defaults for names that it does not define."""
    defaults = {name: getattr(Published, name) for name in dir(Published) if not name.startswith("_")}
    return cast(Published, SimpleNamespace(**{**defaults, **vars(module)}))


def prefixed(prefix: str, segment: str) -> dict[str, tuple[str, ...]]:
    """Map generation_config.json keys that begin with `prefix` to `speech_sampling` fields of a segment.

    The keys set the temperature, top-k, top-p and the sampling switch.
    """
    names: dict[str, tuple[str, ...]] = {f"{prefix}{name}": (f"{segment}.{name}",) for name in DRAWN}
    return names | {f"{prefix}do_sample": (f"{segment}.temperature",)}


# Keys used by transformers, for the audio segment.
AUDIO = prefixed("", "audio") | {name: (name,) for name in NUMBER_OPTIONS}
