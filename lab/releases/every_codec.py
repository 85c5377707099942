"""Any installed codec with narrow layers or with its published sizes, and arbitrary weights.

It serves tests, and measurements that depend only on shapes: decoded windows, and the memory for them.
"""

import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from lab.releases.codec_cases import CodecCase, of_plugins
from lab.releases.random_codecs import STATEFUL, codec_of, make_stateful, mimi, write_checkpoint
from lab.releases.random_espnet import publish, published_tensors
from lab.releases.random_glm4_voice import CONFIG, NARROW, WIDE, write_glm4_voice
from lab.releases.random_qwen3_codec import write_qwen3_codec
from stretto.codecs.base import Codec, load_codec
from stretto.codecs.glm4_voice import Glm4VoiceCodec, read_config

CHECKPOINT = Path(__file__).parents[2] / "model_repository/language_model/1/checkpoint"  # the bundled model


def make_codec(name: str, device: str, is_narrow: bool) -> Codec:
    """Return the bundled codec, or a codec from `random_codecs.py` with random weights."""
    if name == "tiny":
        return load_codec(name, CHECKPOINT, device)
    if name in STATEFUL:
        return make_stateful(name, is_narrow, device=device)
    with tempfile.TemporaryDirectory() as folder:
        return load_codec(codec_of(name), write_checkpoint(name, Path(folder) / "codec", is_narrow).parent, device)


def made(name: str) -> Callable[[bool], Codec]:
    """Return a function that makes the codec called `name` on the CPU, narrow or with its published sizes."""
    return lambda is_narrow: make_codec(name, "cpu", is_narrow)


def _glm4_voice(is_narrow: bool) -> Glm4VoiceCodec:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(CONFIG.format(**(NARROW if is_narrow else WIDE)))
        return Glm4VoiceCodec(read_config(Path(folder)))


def _write_mimi(folder: Path) -> Path:
    mimi(is_narrow=True).model.save_pretrained(folder)
    return folder


BUILT_IN = {
    "dac": CodecCase(made("dac_24khz"), partial(write_checkpoint, "dac_24khz"), (4, 25)),
    "espnet_dac": CodecCase(made("espnet_dac"), lambda folder: publish(folder, published_tensors()), (8, 25)),
    "glm4_voice": CodecCase(_glm4_voice, write_glm4_voice, (10, 25)),
    "mimi": CodecCase(made("mimi"), _write_mimi, (2, 12)),
    "qwen3_12hz": CodecCase(made("qwen3_12hz"), write_qwen3_codec, (2, 12)),
    "tiny": CodecCase(made("tiny"), lambda folder: CHECKPOINT, (4, 25)),
    "xcodec": CodecCase(made("xcodec"), partial(write_checkpoint, "xcodec"), (8, 25)),
}


@cache
def codec_cases() -> dict[str, CodecCase]:
    """Return the cases of all installed codecs, sorted by name."""
    return dict(sorted((BUILT_IN | of_plugins("CASES")).items()))


def every_codec(name: str, is_narrow: bool) -> Codec:
    """Return the installed codec called `name` on the CPU, narrow or with its published sizes."""
    return codec_cases()[name].codec(is_narrow)
