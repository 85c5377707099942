"""Reader of a release, except for the values of its tensors.

The tokenizer is tokenizer.json, or vocab.json and merges.txt as for Qwen 2. For a family that generates no text, a
SentencePiece tokenizer.model is also accepted.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.base import Family
from stretto.family.conversion import AudioTokenizer, Contents, Published, Release, Tokenizer, published_by
from stretto.family.plugin import plugin, plugins, with_defaults
from stretto.family.text import TOKENIZER_FILE, TextTokenizer, check_ids, plain_tokenizer, sentencepiece_at
from stretto.untrusted_files import (
    MAX_TEXT_BYTES,
    check_layers,
    entry,
    json_object,
    named_file,
    read_json,
    regular_file,
    released_file,
    yaml_mapping,
)
from stretto.weights.backbones import read_backbone
from stretto.weights.loading import open_tensors

logger = logging.getLogger(__name__)

FILES = ("vocab.json", "merges.txt")
# id of an added token, as a key
ID = re.compile("[0-9]{1,9}")
SURROGATE = re.compile("[\ud800-\udfff]")
# https://huggingface.co/Qwen/Qwen2-7B/blob/main/tokenizer.json, `pre_tokenizer`.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# File-name prefixes of tokenizer files, needed because the folder may be a whole repository.
TOKENIZER = ("tokenizer", "vocab", "merges", "special_tokens_map", "added_tokens", "chat_template")


def read_tokenizer(folder: Path, spells_bytes: bool = True) -> Tokenizer:
    """Return the tokenizer in `tokenizer.json`, or in vocab.json and merges.txt; raise CheckpointError if unusable.

    Args:
        spells_bytes: See `TextTokenizer`. If False, tokenizer.model is accepted as well.
    """
    built = None
    if (folder / TOKENIZER_FILE).exists() or not (folder / "vocab.json").exists():
        tokens = (TextTokenizer.at(folder) if spells_bytes else plain_tokenizer(folder)).tokens
    else:
        tokenizer = read_byte_level_bpe(folder)
        tokens = TextTokenizer(tokenizer).tokens
        built = json.loads(tokenizer.to_str())
    if not tokens:
        raise CheckpointError(f"{folder}: expected a tokenizer with at least one token, got none")
    names = sorted(path.name for path in folder.iterdir() if path.name.startswith(TOKENIZER) and not path.is_dir())
    return Tokenizer(folder, 1 + max(tokens), tokens, built, tuple(released_file(folder, name) for name in names))


def read_named_tokenizer(path: Path) -> Tokenizer:
    """Read a SentencePiece tokenizer from a file with any name; raise CheckpointError if it is unreadable."""
    tokens = sentencepiece_at(path).tokens
    return Tokenizer(path.parent, len(tokens), tokens, files=(path,))


def read_byte_level_bpe(folder: Path) -> tokenizers.Tokenizer:
    """Return the tokenizer in vocab.json, merges.txt and tokenizer_config.json, or raise CheckpointError.

    Text is split as in the training of Qwen 2. The authors' code may use the Mistral regular expression instead when it
    opens a directory (`fix_mistral_regex` in transformers 4.57.3), which gives different ids for mixed-case words.
    """
    vocabulary, merges = (folder / name for name in FILES)
    try:
        files = [str(regular_file(path, MAX_TEXT_BYTES)) for path in (vocabulary, merges)]
        check_ids(json_object(vocabulary), vocabulary)
        tokenizer = tokenizers.Tokenizer(models.BPE.from_file(*files))
    except CheckpointError:
        raise
    except Exception as error:  # the library raises no narrower class
        raise CheckpointError(f"{folder}: expected {' and '.join(FILES)} of a tokenizer, got {error}") from error
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    added = json_object(folder / "tokenizer_config.json").get("added_tokens_decoder")
    if not isinstance(added, Mapping):
        raise CheckpointError(f"{folder}: expected tokenizer_config.json with added_tokens_decoder, got {added!r}")
    for number, token in sorted(
        added.items(),
        key=lambda number_and_token: int(number_and_token[0]) if ID.fullmatch(number_and_token[0]) else -1,
    ):
        _add(tokenizer, folder, number, token)
    return tokenizer


def _add(tokenizer: tokenizers.Tokenizer, folder: Path, number: str, token: object) -> None:
    content = token.get("content") if isinstance(token, Mapping) else None
    if not isinstance(content, str) or not content or SURROGATE.search(content) or not ID.fullmatch(number):
        raise CheckpointError(f"{folder}: added_tokens_decoder: expected tokens by id, got {number!r}: {token!r}")
    assert isinstance(token, Mapping)
    tokenizer.add_tokens([AddedToken(content, special=bool(token.get("special")), normalized=False)])
    if tokenizer.token_to_id(content) != int(number):
        got = tokenizer.token_to_id(content)
        raise CheckpointError(f"{folder}: added token {content!r}: expected the next id, {got}, got {number}")


def convertible() -> list[str]:
    """Return the names of the families that `stretto convert` supports."""
    return [family_plugin.name.replace("_", "-") for family_plugin in plugins() if family_plugin.convert is not None]


def published(release: Release) -> Published:
    """Return the conversion module of a release's family and format."""
    family_plugin = plugin(release.family_name)
    if family_plugin is None or family_plugin.convert is None:
        raise CheckpointError(f"{release.family}: expected one of {', '.join(convertible())}")
    module = published_by(import_module(family_plugin.convert))
    if module.TRANSFORMERS and classes_of(release) is not None:
        return published_by(import_module(module.TRANSFORMERS))
    return module


def classes_of(release: Release) -> Any:
    """Return the classes named in a release's config.json, which only transformers writes; None if there are none."""
    if release.config is None or release.config.suffix != ".json":
        return None
    return read_json(release.config).get("architectures")


def audio_tokenizer_of(family: str) -> Callable[[Path, int], AudioTokenizer] | None:
    """Return the function that converts a family's audio tokenizer, or None if the family has no audio tokenizer."""
    family_plugin = plugin(family)
    if family_plugin is None or family_plugin.convert is None:
        return None
    tokenizer_class = published_by(import_module(family_plugin.convert)).SSL_TOKENIZER
    return None if tokenizer_class is None else tokenizer_class.from_folder


def marks() -> dict[str, str]:
    """Return descriptions by names of tensors that only one kind of release has; errors name the kind of a wrong file.

    Converters that fail to import are logged and skipped.
    """
    marks_by_name: dict[str, str] = {}
    for family_plugin in plugins():
        try:
            marks_by_name |= (
                published_by(import_module(family_plugin.convert)).MARKS if family_plugin.convert is not None else {}
            )
        except Exception as error:  # a plug-in may raise anything
            logger.warning("%s: cannot import %s: %r", family_plugin.name, family_plugin.convert, error)
    return marks_by_name


DTYPES = ("bfloat16", "float16", "float32")


# Last components of tensor names in the AWQ, GPTQ, compressed-tensors and FP8 formats.
QUANTIZED = {"qweight", "weight_packed", "weight_scale", "weight_scale_inv"}


def check_format(release: Release) -> None:
    """Raise CheckpointError for a release in transformers format if the family's converter reads only the authors'."""
    expected = published(release).AUTHORS_FORMAT
    classes = classes_of(release)
    if expected and classes is not None:
        got = f"transformers format (architectures {shown(classes)})"
        raise CheckpointError(f"{release.config}: expected {expected}, got {got}")


def read_contents(release: Release) -> Contents:
    """Read everything except the tensor values; raise CheckpointError if a file is invalid."""
    config = _config(release)
    family = published(release)
    tensors = family.own_tensors(release) or open_tensors(release.model)
    _refuse_quantized(release, config, tensors)
    tokenizer = family.own_tokenizer(release, tensors)
    if family.TOKENIZER_KEY and family.TOKENIZER_KEY in config:
        tokenizer = read_named_tokenizer(named_file(release.tokenizer, config, family.TOKENIZER_KEY))
    tokenizer = tokenizer or read_tokenizer(release.tokenizer, spells_bytes=not family.IS_BARE)
    tag = family.BACKBONE_TAG
    backbone = config if tag is None else read_backbone(entry(config, tag), release.backbone, release.tokenizer)
    trained = "float32" if family.IS_FLOAT32 else family.trained_dtype(config)
    dtype = release.dtype or _known_dtype(trained, tensors, family.EMBEDDINGS)
    return Contents(config, tensors, tokenizer, backbone, dtype)


def _config(release: Release) -> dict[str, Any]:
    """Return the release's config, or an empty dict if the family's releases have none."""
    if release.config is None:
        if not published(release).IS_BARE:
            raise CheckpointError(f"--config: expected the config.yaml or config.json of {release.family}, got none")
        return {}
    read = read_json if release.config.suffix == ".json" else yaml_mapping  # YAML would read 1e-05 as a string
    config = read(release.config)
    check_layers(config, release.config)
    return config


def _refuse_quantized(release: Release, config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Raise CheckpointError for quantized weights: converters combine tensors and need unquantized values."""
    record = config.get("quantization_config")
    names = sorted(name for name in tensors if name.rpartition(".")[2] in QUANTIZED)
    if record or names:
        method = record.get("quant_method") if isinstance(record, dict) else record
        got = f"quantization_config {shown(method)}" if record else f"a tensor {names[0]}"
        raise CheckpointError(
            f"{release.model}: expected unquantized weights, got {got}; convert the original release, then quantize "
            "the checkpoint, or serve it with stretto make-repository --quantize fp8"
        )


def notes_on(contents: Contents, release: Release) -> list[str]:
    """Return remarks about the release for the operator."""
    family = published(release)
    table = _embeddings(contents.tensors, family.EMBEDDINGS)
    stored = str(table.dtype).removeprefix("torch.")
    notes = [f"stored in {stored}, written in {contents.dtype}"] if stored != contents.dtype else []
    if contents.dtype == "float32" and release.dtype is None and not family.IS_FLOAT32:
        notes.append("written and served in float32; --dtype bfloat16 takes half the memory, and less time on a GPU")
    return notes + family.notes(contents.config, table, release.family)


def _embeddings(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the tensor with the name of the embeddings, or the first tensor if there is none."""
    return tensors[name if name in tensors else next(iter(tensors))]


def _known_dtype(trained: str | None, tensors: Mapping[str, Tensor], embeddings: str) -> str:
    """Return the dtype used in training; if unknown, the dtype of the embeddings."""
    stored = _embeddings(tensors, embeddings)
    dtype = trained or str(stored.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise CheckpointError(
            f"expected a model trained in one of {', '.join(DTYPES)}, got {dtype!r}; choose one with --dtype"
        )
    return dtype


GENERATION_FILE = "generation_config.json"


def read_defaults(
    release: Release, family: Family, names: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, Any], list[str]]:
    """Return `speech_sampling` from a release's generation_config.json, and remarks, or raise CheckpointError.

    The file is next to the release's config or its weights. Lengths are ignored: the family defines them, and a request
    may override them.

    Args:
        names: Fields of `speech_sampling` by key in the file. If a `…do_sample` key is false, its segment is greedy.
    """
    path = _place(release) if names else None
    if path is None:
        return {}, []
    record = json_object(path)
    taken: dict[str, Any] = {}
    keys = [name for name in names if record.get(name) is not None]
    if family.drawing.penalized is None:
        keys = [name for name in keys if "repetition_penalty" not in names[name]]
    is_switch = {name: name.endswith(("do_sample", "dosample")) for name in keys}
    for name in sorted(keys, key=lambda name: is_switch[name]):  # switches last, because they override the temperature
        value = record[name]
        if is_switch[name]:
            if not isinstance(value, bool):
                raise CheckpointError(f"{path}: {name}: expected true or false, got {shown(value)}")
            if value:
                continue
            value = 0.0
        for field in names[name]:
            segment, _, last = field.rpartition(".")
            sampling = {last: value}
            try:
                with_defaults(family, {segment: sampling} if segment else sampling)
            except CheckpointError as error:
                expected = str(error).partition(": expected ")[2]
                raise CheckpointError(f"{path}: {name}: expected {expected}") from error
            (taken.setdefault(segment, {}) if segment else taken).update(sampling)
    description = ", ".join(f"{name} {record[name]}" for name in keys)
    return taken, [f"defaults from {GENERATION_FILE}: {description}"] if keys else []


def _place(release: Release) -> Path | None:
    """Return the path of generation_config.json, or None if the release does not contain one."""
    folders = [release.folder]
    if release.config is not None:
        folders.insert(0, release.config.parent)
    return next(
        (released_file(folder, GENERATION_FILE) for folder in folders if (folder / GENERATION_FILE).exists()), None
    )
