"""A small random release of each family: see `lab/releases/layouts.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.releases import random_glm4_voice, random_qwen3_tts, random_vita
from lab.releases.codec_cases import of_plugins
from lab.releases.layouts import BPE, INDEX, SHARD, TOKENIZER, Layout, hugging_face
from lab.releases.random_tensors import split_weights
from tests import published_checkpoints, published_csm, published_xeus


def _espnet(family: str) -> Callable[[Path], list[str | Path]]:
    def write(folder: Path) -> list[str | Path]:
        published = published_checkpoints.write_release(family, folder)
        words: list[str | Path] = [*published_checkpoints.command(family, published, folder)[1:-2]]
        if family == "bagpiper":
            (folder / "config.yaml").rename(folder / "train_bagpiper_tts.yaml")
            (folder / "inference.yaml").write_text("{}")
            words[words.index("--config") + 1] = folder / "train_bagpiper_tts.yaml"
        return words

    return write


def _opuslm(folder: Path) -> list[str | Path]:
    words = _espnet("opuslm")(folder)
    xeus = published_xeus.write_xeus(folder / "xeus")
    return [*words, "--ssl-tokenizer", xeus]


def _qwen3_tts(kind: str) -> Callable[[Path], list[str | Path]]:
    def write(folder: Path) -> list[str | Path]:
        release = random_qwen3_tts.write_with_codec(folder / "release", kind)
        return [*hugging_face(release), "--codec", release / "speech_tokenizer"]

    return write


def _csm(folder: Path) -> list[str | Path]:
    """Sesame's own files of the weights are in the same repository."""
    release = published_csm.write_release(folder / "release", published_csm.make_model())
    for name in ("model.safetensors", "ckpt.pt"):
        (release.folder / name).write_bytes(b"not read")
    return [*release.command[1:]]


def _saved_csm(folder: Path) -> list[str | Path]:
    release = published_csm.write_saved(folder / "release", published_csm.make_model())
    return [*release.command[1:]]


def _vita_audio(config: dict[str, Any]) -> Callable[[Path], list[str | Path]]:
    def write(folder: Path) -> list[str | Path]:
        release = random_vita.write_release(folder / "release", config)
        split_weights(release, 4)
        codec = random_glm4_voice.write_glm4_voice(folder / "codec")
        words = [*hugging_face(release), "--codec", codec]
        if config is random_vita.PLUS:
            return words
        return [*words, "--ssl-tokenizer", random_glm4_voice.write_glm4_tokenizer(folder / "tokenizer")]

    return write


CODEC_OF_QWEN = ("config.json", "model.safetensors", "preprocessor_config.json")
GLM_4_VOICE = {
    "codec": ("config.yaml", "flow.pt", "hift.pt"),  # THUDM/glm-4-voice-decoder
    "tokenizer": ("config.json", "model.safetensors", "preprocessor_config.json"),  # THUDM/glm-4-voice-tokenizer
}
VITA = ("config.json", "generation_config.json", SHARD, INDEX, *TOKENIZER)
ESPNET_DAC = ("config.yaml", "360epoch.pth")  # ftshijt/espnet_codec_dac_large_v1.4_360epoch
LAYOUTS = {
    "espnet/bagpiper-tts-sft": Layout(
        "bagpiper",
        _espnet("bagpiper"),
        {
            ".": ("model.pt", "train_bagpiper_tts.yaml", "inference.yaml"),
            "codec": ("config.json", "model.safetensors"),  # hf-audio/xcodec-hubert-general
            "tokenizer": ("config.json", *TOKENIZER),  # Qwen/Qwen3-8B-Base
        },
        ("audio/config.json",),
        unused=("inference.yaml",),
    ),
    "espnet/OpusLM_7B_Anneal": Layout(
        "opuslm",
        _opuslm,
        {
            ".": ("model.pth", "config.yaml"),
            "codec": ESPNET_DAC,
            "tokenizer": TOKENIZER,
            "xeus/model": ("xeus_checkpoint_new.pth", "config.yaml", "km_opus_lm.mdl"),
        },
        ("backbone/config.json",),
    ),
    "espnet/multi_turn_SDS_RLAIF": Layout(
        "opuslm-dialogue",
        _espnet("opuslm-dialogue"),
        {".": ("2epoch.pth", "config.yaml"), "codec": ESPNET_DAC, "tokenizer": TOKENIZER},
        ("backbone/config.json",),
    ),
    "VITA-MLLM/VITA-Audio-Boost": Layout(
        "vita-audio", _vita_audio(random_vita.SMALL), {"release": VITA, **GLM_4_VOICE}
    ),
    "VITA-MLLM/VITA-Audio-Plus-Boost": Layout(
        "vita-audio",
        _vita_audio(random_vita.PLUS),
        {"release": (*VITA, "config.yaml", "am.mvn"), "codec": GLM_4_VOICE["codec"]},
    ),
    "Qwen/Qwen3-TTS-12Hz-1.7B-CustomVoice": Layout(
        "qwen3-tts",
        _qwen3_tts("custom_voice"),
        {
            "release": ("config.json", "generation_config.json", "model.safetensors", *BPE),
            "release/speech_tokenizer": CODEC_OF_QWEN,
        },
    ),
    "Qwen/Qwen3-TTS-12Hz-1.7B-Base": Layout(
        "qwen3-tts",
        _qwen3_tts("base"),
        {
            "release": ("config.json", "generation_config.json", "model.safetensors", *BPE),
            "release/speech_tokenizer": CODEC_OF_QWEN,
        },
    ),
    "sesame/csm-1b": Layout(
        "csm",
        _csm,
        {
            "release": (
                "config.json",
                "generation_config.json",
                *("transformers-0000?-of-0000?.safetensors", "transformers.safetensors.index.json"),
                *("model.safetensors", "ckpt.pt", *TOKENIZER),
            )
        },
        unused=("release/model.safetensors", "release/ckpt.pt"),
    ),
    "CSM saved by transformers": Layout(
        "csm",
        _saved_csm,
        {"release": ("config.json", "generation_config.json", "model.safetensors", *TOKENIZER)},
    ),
} | of_plugins("LAYOUTS", "releases")
