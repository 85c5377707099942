"""Codec of a checkpoint: a folder published by its authors, or the copy inside a release's weights."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    HiggsAudioV2TokenizerConfig,
    MimiConfig,
    MimiModel,
    PretrainedConfig,
    PreTrainedModel,
    XcodecConfig,
    XcodecModel,
)

from stretto.checkpoints import tensors
from stretto.checkpoints import tensors as shards
from stretto.checkpoints.tensors import Entry, Part, Written, check, shapes_of
from stretto.codec.espnet_dac import read_config
from stretto.codec.glm4_voice import config as glm4_voice
from stretto.codec.glm4_voice.tokenizer import CONFIG, FEATURES, FOLDER, read_tokenizer
from stretto.codec.published import load_config
from stretto.codec.qwen3_12hz import config as qwen3_12hz
from stretto.codec.registry import load_codec
from stretto.errors import CheckpointError
from stretto.families.base import Family
from stretto.untrusted_files import UNPARSABLE, released_file


@dataclass(frozen=True)
class PublishedTokenizer:
    """Files to be copied to `ssl_tokenizer/`; no tensor is converted or dropped."""

    files: list[Path]
    entries: Sequence[Entry] = ()
    dropped: dict[str, list[int]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, num_codes: int) -> "PublishedTokenizer":
        """Return the files in a folder; CheckpointError if they do not fit, or make another number of codes."""
        read_tokenizer(folder, num_codes)
        names = [CONFIG, FEATURES, *sorted(path.name for path in folder.glob("model*.safetensors"))]
        return cls([released_file(folder, name) for name in names])

    def write(self, folder: Path, progress: tensors.Progress) -> list[Written]:
        """Copy the files."""
        return [tensors.copy_file(path, folder / path.name, f"{FOLDER}/{path.name}") for path in self.files]


WEIGHTS = (".pt", ".pth", ".safetensors")
FILES = (".json", ".yaml", *WEIGHTS)
SUFFIX = ".safetensors"
# Tensors that identify the contents of a file that is not a supported codec.
MARKS = {
    "model.embed_tokens.weight": "a language model",
    "language_model.model.embed_tokens.weight": "a language model",
    "audio_codebook_embeddings.weight": "Higgs Audio's language model in Boson's own layout",
    "embed_text_tokens.weight": "CSM's language model",
    "talker.model.codec_embedding.weight": "Qwen3-TTS's language model",
    "decoder_2.model.0.weight_g": "a codec in the layout of its authors' own code",
    "acoustic_decoder.conv1.weight": "a codec of X-codec's kind",
    "decoder.layers.0.conv.weight": "a codec of Mimi's kind",
}
COPIED: dict[str, tuple[type[PretrainedConfig], type[PreTrainedModel]]] = {
    "xcodec": (XcodecConfig, XcodecModel),
    "mimi": (MimiConfig, MimiModel),
}


def check_directory(folder: Path, family: Family) -> list[Path]:
    """Return the codec's files; CheckpointError if the folder holds another codec than the family's."""
    if family.codec == "xcodec":
        config = load_config(XcodecConfig, folder)
        found = (config.num_quantizers, config.codebook_size)
    elif family.codec == "mimi":
        mimi = load_config(MimiConfig, folder)
        found = (mimi.num_quantizers, mimi.codebook_size)
    elif family.codec == "higgs":
        higgs = load_config(HiggsAudioV2TokenizerConfig, folder)
        found = (higgs.num_quantizers, higgs.codebook_size)
    elif family.codec == "espnet_dac":
        numbers = read_config(folder)
        found = (numbers.num_codebooks, numbers.codebook_size)
    elif family.codec == "glm4_voice":
        found = (1, glm4_voice.read_config(folder).codebook_size)
    elif family.codec == "qwen3_12hz":
        shape = qwen3_12hz.read_config(folder).decoder
        found = (shape.num_quantizers, shape.codebook_size)
    else:
        raise CheckpointError(f"{folder}: no reader for what is published of codec {family.codec!r}")
    expected = (family.num_codebooks, family.layout.codebook_size)
    if found != expected:
        raise CheckpointError(f"{folder}: expected {expected[0]} codebooks of {expected[1]} codes, got {found}")
    names = sorted(path.name for path in folder.iterdir() if path.suffix in FILES and not path.is_dir())
    files = [released_file(folder, name) for name in names]
    if not any(path.suffix in WEIGHTS for path in files):
        known = f"{', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}"
        raise CheckpointError(f"{folder}: expected weights ({known}) beside the codec's numbers, got none")
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
            kind = next((kind for name, kind in MARKS.items() if name in names), "no codec that is known")
            shape = file.get_slice(names[0]).get_shape() if names else []
            found.append(f"{path.name} seems to hold {kind}: {len(names)} tensors, the first {names[:1]} {shape}")
    others = [path.name for path in files if path.suffix in WEIGHTS and path.suffix != SUFFIX]
    return ", ".join([*found, *others])


@dataclass(frozen=True)
class Copy:
    """Copy of X-codec or Mimi inside a release, to be written in transformers' layout.

    Attributes:
        record: Its config.json.
        entries: Its tensors.
    """

    record: dict[str, Any]
    entries: list[Entry]

    @classmethod
    def of(
        cls, family: Family, folder: Path | None, release: Mapping[str, Any], tensors: Mapping[str, Tensor], prefix: str
    ) -> "Copy":
        """Return the copy formed by the tensors under `prefix`.

        Args:
            family: Family of the release.
            folder: Folder of the published codec, whose config.json is used; None to use the release's.
            release: config.json of the release. Its `codec_config` is used if present, else the defaults of
                transformers' class, which are those of hf-audio/xcodec-hubert-general.
            tensors: Tensors of the release.
            prefix: Prefix of the names of the copy's tensors.

        Raises:
            CheckpointError: If the family's codec has no such copy, or its tensors do not fit.
        """
        if family.codec not in COPIED:
            raise CheckpointError(f"{family.name}: expected a copy of {', '.join(COPIED)}, got {family.codec}")
        config_class, model_class = COPIED[family.codec]
        try:
            numbers = dict(release.get("codec_config") or {})
            config = load_config(config_class, folder) if folder else config_class.from_dict(numbers)
        except (*UNPARSABLE, StrictDataclassError) as error:
            said = " ".join(str(error).split())
            raise CheckpointError(f"config.json: codec_config: not the numbers of {family.codec}: {said}") from error
        plan = {f"{prefix}{name}": Part(name, shape) for name, shape in shapes_of(model_class, config).items()}
        check(plan, {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}, ())
        entries = [
            Entry(part.name, tensors[name].dtype, part.stored, partial(tensors.__getitem__, name))
            for name, part in plan.items()
        ]
        return cls({**config.to_dict(), "architectures": [model_class.__name__]}, entries)

    def write(self, folder: Path, progress: shards.Progress) -> list[Written]:
        """Write `config.json` and `model.safetensors`."""
        files = [shards.write_json(folder / "config.json", self.record)]
        files.append(shards.write_file(folder / "model.safetensors", self.entries, progress))
        return [replace(file, name=f"codec/{file.name}") for file in files]
