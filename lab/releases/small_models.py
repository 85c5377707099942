"""Small, randomly initialised versions of the published families, converted for the server.

They serve benchmarks and first experiments. Everything that affects speed, except the backbone, is as published:
vocabulary, streams, delays, codec strides and chunks. The backbone has four layers of width 256. The codec and the
audio encoder have few channels. In Qwen3-TTS, the depth transformer is as wide as the backbone, the codec is an eighth
as wide as published, and there are few text ids, because text is only looked up.
"""

import argparse
import contextlib
import itertools
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab.releases import random_espnet, random_qwen3_codec, random_qwen3_tts
from lab.releases.random_espnet import Published, Size, write_codec
from lab.texts import ANIMALS, CITIES, texts
from stretto.convert import command as convert_checkpoint
from stretto.families.bagpiper.family import BagpiperVocabulary
from stretto.families.opuslm.family import OpusVocabulary

SIZE = Size(hidden=256, layers=4)


@dataclass(frozen=True)
class SmallModel:
    """A small model, and the requests that a benchmark sends to it.

    Attributes:
        family: Family name for the converter.
        speak: Task that generates speech.
        has_text: True if the model generates text before speech.
        guidance_scale: Guidance scale of the authors; None if the model is not guided.
        options: Options of every request for speech.
    """

    family: str
    speak: str
    has_text: bool
    guidance_scale: float | None
    options: Mapping[str, str] = field(default_factory=dict, hash=False)


SMALL_MODELS = {
    "bagpiper-small": SmallModel("bagpiper", "tts", True, 3.0),
    "opuslm-small": SmallModel("opuslm", "tts", False, None),
    "dialogue-small": SmallModel("opuslm-dialogue", "dialogue", True, None),
    "qwen3-tts-small": SmallModel("qwen3-tts", "tts", False, None, {"voice": "ryan", "language": "english"}),
}


def write_release(
    family: str, folder: Path, vocabulary: BagpiperVocabulary | OpusVocabulary | None = None, size: Size = SIZE
) -> tuple[Published, Path]:
    """Write a randomly initialised release; return its files and its codec directory."""
    if family == "bagpiper":
        assert not isinstance(vocabulary, OpusVocabulary)
        published = random_espnet.write_bagpiper(folder, vocabulary or BagpiperVocabulary(), size=size)
        assert published.codec is not None
        return published, published.codec
    assert not isinstance(vocabulary, BagpiperVocabulary)
    words = vocabulary or OpusVocabulary()
    is_dialogue = family == "opuslm-dialogue"
    backbone = "llama" if is_dialogue else "olmo2"
    published = random_espnet.write_opuslm(folder, words, backbone, is_dialogue, size=size)
    return published, write_codec(folder / "codec", words.codebook_size)


def write_checkpoint(
    family: str, out: Path, vocabulary: BagpiperVocabulary | OpusVocabulary | None = None, size: Size = SIZE
) -> Path:
    """Write a randomly initialised release and convert it, with the converter's output on stderr."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        if family == "qwen3-tts":
            words = _write_qwen3_tts(Path(folder))
        else:
            published, codec = write_release(family, Path(folder), vocabulary, size)
            words = ["--model", published.model, "--config", published.config, "--tokenizer", published.tokenizer]
            words += ["--backbone", published.backbone, "--codec", codec]
            words += ["--audio-config", published.audio] if published.audio else []
        words = [family, *words, "--out", out]
        if convert_checkpoint.main([str(word) for word in words]) != 0:
            raise RuntimeError(f"the converter refused the random release of {family}")
    return out


def _write_qwen3_tts(folder: Path) -> list[str | Path]:
    """Write a Qwen3-TTS release with one token per word; return the converter's arguments."""
    lines = " ".join(itertools.islice(texts(), len(CITIES) * len(ANIMALS)))
    words = {word.replace(" ", "Ġ") for word in re.findall(" ?[a-zA-Z]+", lines)}
    config = random_qwen3_tts.proportioned_config()
    release = random_qwen3_tts.write_release(folder / "release", config, words=sorted(words))
    codec = random_qwen3_codec.write_qwen3_codec(release / "speech_tokenizer", "small")
    files = "--model", release, "--config", release / "config.json", "--tokenizer", release
    return [*files, "--codec", codec]


def main(arguments: argparse.Namespace) -> None:
    write_checkpoint(SMALL_MODELS[arguments.model].family, arguments.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SMALL_MODELS)
    parser.add_argument("out", type=Path, help="directory to create")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
