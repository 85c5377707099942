"""Small releases of the published families in the exact published layout, and their conversion."""

from dataclasses import replace
from pathlib import Path

from lab.releases import random_espnet
from lab.releases.random_espnet import Published, write_codec
from stretto.convert.command import main
from stretto.families.bagpiper.family import BagpiperVocabulary
from stretto.families.opuslm.family import OpusVocabulary
from tests.small_vocabularies import SMALL_BAGPIPER, SMALL_OPUSLM

FAMILIES = ("bagpiper", "opuslm", "opuslm-dialogue")


def write_bagpiper(
    folder: Path, vocabulary: BagpiperVocabulary = SMALL_BAGPIPER, seed: int = 0, dtype: str = "float32"
) -> Published:
    """Write a Bagpiper release with its codec."""
    folder.mkdir(parents=True, exist_ok=True)
    return random_espnet.write_bagpiper(folder, vocabulary, seed, dtype)


def write_opuslm(
    folder: Path,
    vocabulary: OpusVocabulary = SMALL_OPUSLM,
    backbone: str = "olmo2",
    is_dialogue: bool = False,
    seed: int = 0,
) -> Published:
    """Write an OpusLM release with an ESPnet codec of matching size."""
    folder.mkdir(parents=True, exist_ok=True)
    published = random_espnet.write_opuslm(folder, vocabulary, backbone, is_dialogue, seed)
    codec = write_codec(folder / "codec", vocabulary.codebook_size, seed)
    return replace(published, codec=codec)


def command(family: str, published: Published, out: Path) -> list[str]:
    """Return the converter's command line."""
    places = {name: getattr(published, name) for name in ("model", "config", "tokenizer", "backbone", "codec")}
    if family == "bagpiper":
        places["audio-config"] = published.audio
    named = [word for name, path in places.items() if path for word in (f"--{name}", str(path))]
    return [family, *named, "--out", str(out)]


def convert(family: str, published: Published, out: Path, *words: str) -> Path:
    """Convert a release to `out` and return the checkpoint."""
    assert main([*command(family, published, out), *words]) == 0
    return out


def write_release(family: str, folder: Path, seed: int = 0) -> Published:
    """Write one of FAMILIES; as published, the dialogue model uses Llama and OpusLM uses OLMo 2."""
    if family == "bagpiper":
        return write_bagpiper(folder, seed=seed)
    if family == "opuslm":
        return write_opuslm(folder, seed=seed)
    return write_opuslm(folder, backbone="llama", is_dialogue=True, seed=seed)
