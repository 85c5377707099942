"""The published families in small, for benchmarks and for a try: random releases, put through the converter.

What costs time beside the backbone is as published: vocabulary, streams, delays, strides of the codec, chunks. The
backbone has four layers of 256, codec and audio tower few channels. Of Qwen3-TTS the depth transformer is as wide, and
the codec an eighth as wide as published; its text, which is only looked up, has few ids. Likewise Qwen3-Omni's talker,
whose experts are as many as published. Higgs Audio's text has few ids, too.
"""

import argparse
import contextlib
import itertools
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.checkpoints import (
    random_higgs_audio,
    random_published,
    random_qwen3_codec,
    random_qwen3_omni,
    random_qwen3_tts,
)
from benchmarks.checkpoints.random_espnet import write_codec
from benchmarks.checkpoints.random_published import Published, Size
from benchmarks.speech_load import ANIMALS, CITIES, texts
from stretto.convert import command as convert_checkpoint
from stretto.families.bagpiper.family import BagpiperVocabulary
from stretto.families.opuslm.family import OpusVocabulary

SIZE = Size(hidden=256, layers=4)


@dataclass(frozen=True)
class SmallModel:
    """One of the converter's families, and what a benchmark asks it: the tasks to speak and to listen, where it can.

    has_text: whether it writes before it speaks. guidance_scale: the authors' own, None where they guide nothing.
    options: of every request to speak. tail_rows: behind a reply's last frame, of those that a limit counts.
    """

    family: str
    speak: str
    listen: str | None
    has_text: bool
    guidance_scale: float | None
    options: Mapping[str, str] = field(default_factory=dict, hash=False)
    tail_rows: int = 0


SMALL_MODELS = {
    "bagpiper-small": SmallModel("bagpiper", "tts", "understand", True, 3.0),
    "opuslm-small": SmallModel("opuslm", "tts", "asr", False, None),
    "dialogue-small": SmallModel("opuslm-dialogue", "dialogue", "asr", True, None),
    "qwen3-tts-small": SmallModel("qwen3-tts", "tts", None, False, None, {"voice": "ryan", "language": "english"}),
    "higgs-audio-small": SmallModel("higgs-audio-v2", "tts", None, False, None, tail_rows=7),
    "qwen3-omni-talker-small": SmallModel("qwen3-omni-talker", "speak", None, False, None),
}


def write_release(
    family: str, folder: Path, vocabulary: BagpiperVocabulary | OpusVocabulary | None = None, size: Size = SIZE
) -> tuple[Published, Path]:
    """A random release and the directory of its codec; the dialogue model goes over Llama, as the published one."""
    if family == "bagpiper":
        assert not isinstance(vocabulary, OpusVocabulary)
        published = random_published.write_bagpiper(folder, vocabulary or BagpiperVocabulary(), size=size)
        assert published.codec is not None
        return published, published.codec
    assert not isinstance(vocabulary, BagpiperVocabulary)
    words = vocabulary or OpusVocabulary()
    is_dialogue = family == "opuslm-dialogue"
    backbone = "llama" if is_dialogue else "olmo2"
    published = random_published.write_opuslm(folder, words, backbone, is_dialogue, size=size)
    return published, write_codec(folder / "codec", words.codebook_size)


def write_checkpoint(
    family: str, out: Path, vocabulary: BagpiperVocabulary | OpusVocabulary | None = None, size: Size = SIZE
) -> Path:
    """What the converter makes of a random release: a directory that the server loads. Its account goes to stderr."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        if family in WRITERS:
            words = WRITERS[family](Path(folder))
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
    """Of Qwen3-TTS there is one small release, to which a word is a token; what the converter is told of it."""
    lines = " ".join(itertools.islice(texts(), len(CITIES) * len(ANIMALS)))
    words = {word.replace(" ", "Ġ") for word in re.findall(" ?[a-zA-Z]+", lines)}
    config = random_qwen3_tts.proportioned_config()
    release = random_qwen3_tts.write_release(folder / "release", config, words=sorted(words))
    codec = random_qwen3_codec.write_qwen3_codec(release / "speech_tokenizer", "small")
    files = "--model", release, "--config", release / "config.json", "--tokenizer", release
    return [*files, "--codec", codec]


def _write_higgs_audio(folder: Path) -> list[str | Path]:
    """Of Higgs Audio as many codebooks and codes as published."""
    model = random_higgs_audio.make_model(width=SIZE.hidden, layers=SIZE.layers, max_rows=1024)
    return [*random_higgs_audio.write_release(folder / "release", model).command[1:]]


def _write_talker(folder: Path) -> list[str | Path]:
    """Of Qwen3-Omni all that the talker needs, and code2wav."""
    release = random_qwen3_omni.write_release(folder, random_qwen3_omni.proportioned_config())
    files = "--model", release / "model.safetensors.index.json", "--config", release / "config.json"
    return [*files, "--tokenizer", release]


# Families with one small release each.
WRITERS: dict[str, Callable[[Path], list[str | Path]]] = {
    "qwen3-tts": _write_qwen3_tts,
    "higgs-audio-v2": _write_higgs_audio,
    "qwen3-omni-talker": _write_talker,
}


def main(arguments: argparse.Namespace) -> None:
    """Write one."""
    write_checkpoint(SMALL_MODELS[arguments.model].family, arguments.out)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=SMALL_MODELS)
    parser.add_argument("out", type=Path, help="directory to create")
    return parser.parse_args()


if __name__ == "__main__":
    main(parse())
