"""Kyutai's small random releases, and facts about listings of others: see `lab/releases/layouts.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.releases.layouts import SAVED, Layout, whole
from plugins.kyutai.lab import random_kyutai_stt, random_kyutai_tts, random_moshi, random_personaplex
from plugins.kyutai.tests import transformers_releases

SHALLOW = {"num_layers": 1, "depformer_num_layers": 1}
MIMI = "tokenizer-e351c8d8-checkpoint125.safetensors"
STT_MIMI = "mimi-pytorch-e351c8d8@125.safetensors"
TTS_TOKENIZER = "tokenizer_spm_8k_en_fr_audio.model"
KYUTAI = {"dim": 8, "n_q": 16, "mimi_name": "m.safetensors", "tokenizer_name": "t.model"}


def _kyutai(write: Callable[..., Path], **changed: Any) -> Callable[[Path], list[str | Path]]:
    return lambda folder: whole(write(folder / "release", **SHALLOW, **changed))


LAYOUTS = {
    "kyutai/stt-1b-en_fr": Layout(
        "kyutai-stt",
        _kyutai(random_kyutai_stt.write_release),
        {"release": ("config.json", "model.safetensors", STT_MIMI, "tokenizer_en_fr_audio_8000.model")},
        ("release/mimi.json",),
    ),
    "kyutai/stt-2.6b-en": Layout(
        "kyutai-stt",
        _kyutai(
            random_kyutai_stt.write_release,
            moshi_name="model.safetensors",
            tokenizer_name="tokenizer_en_audio_4000.model",
        ),
        {"release": ("config.json", "model.safetensors", STT_MIMI, "tokenizer_en_audio_4000.model")},
        ("release/mimi.json",),
    ),
    "Kyutai STT saved by transformers": Layout(  # as kyutai/stt-2.6b-en-trfs
        "kyutai-stt",
        lambda folder: whole(transformers_releases.write_stt(folder / "release", num_layers=1)),
        {"release": (*SAVED, "processor_config.json")},
        unused=("release/generation_config.json",),
    ),
    "kyutai/tts-0.75b-en-public": Layout(
        "kyutai-tts",
        _kyutai(random_kyutai_tts.write_release),
        {"release": ("config.json", "dsm_tts_d6ef30c7@1000.safetensors", MIMI, TTS_TOKENIZER)},
        ("release/mimi.json",),
    ),
    "kyutai/tts-1.6b-en_fr": Layout(
        "kyutai-tts",
        _kyutai(random_kyutai_tts.write_release, base=random_kyutai_tts.LARGE),
        {
            "release": ("config.json", "dsm_tts_1e68beda@240.safetensors", MIMI, TTS_TOKENIZER),
            "release/voices": ("expresso/*.wav.1e68beda@240.safetensors", "vctk/*.wav.1e68beda@240.safetensors"),
        },
        ("release/mimi.json",),
    ),
    "kyutai/moshika-pytorch-bf16": Layout(
        "moshi",
        _kyutai(random_moshi.write_release),
        {"release": ("config.json", "model.safetensors", MIMI, "tokenizer_spm_32k_3.model")},
        ("release/mimi.json",),
    ),
    "Kyutai STT saved by transformers 4": Layout(
        "kyutai-stt",
        lambda folder: whole(transformers_releases.write_stt(folder / "release", version=4, num_layers=1)),
        {"release": (*SAVED, "preprocessor_config.json")},
        unused=("release/generation_config.json",),
    ),
    "Moshi saved by transformers": Layout(  # as kmhf/hf-moshiko
        "moshi",
        lambda folder: whole(transformers_releases.write_moshi(folder / "release", **SHALLOW)),
        {"release": SAVED},
        unused=("release/generation_config.json",),
    ),
    "nvidia/personaplex-7b-v1": Layout(
        "personaplex",
        _kyutai(random_personaplex.write_release),
        {"release": ("config.json", "model.safetensors", MIMI, "tokenizer_spm_32k_3.model", "voices.tgz")},
        ("release/mimi.json",),
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Kyutai STT without weights": (
        {"config.json": {"model_type": "kyutai_speech_to_text"}},
        "model.safetensors, which a release in transformers format must have, is missing",
    ),
    "Kyutai STT without delays": (
        {"config.json": {"model_type": "kyutai_speech_to_text"}, "model.safetensors": "", "tokenizer.json": ""},
        "preprocessor_config.json, which a release in transformers format must have, is missing",
    ),
    "Moshi without a tokenizer": (
        {"config.json": {"model_type": "moshi"}, "model.safetensors": ""},
        "tokenizer.json, which a release in transformers format must have, is missing",
    ),
    "Moshi in 8 bits": ({"config.json": KYUTAI | {"dep_q": 8}, "model.q8.safetensors": ""}, "got model.q8.safetensors"),
    "Moshi without Mimi": (
        {"config.json": KYUTAI | {"dep_q": 8}, "model.safetensors": "", "t.model": ""},
        "m.safetensors, which the release must have",
    ),
}
DETECTED: dict[str, tuple[dict[str, Any], str | None, dict[str, Any]]] = {
    "voices of another repository": (
        {
            "config.json": {
                "model_type": "tts",
                "dep_q": 32,
                "mimi_name": "m.safetensors",
                "tokenizer_name": "t.model",
                "conditioners": {"cfg": {}},
                "model_id": {"sig": "ab", "epoch": 3},
                "moshi_name": "lm.safetensors",
            },
            **dict.fromkeys(("m.safetensors", "t.model", "lm.safetensors"), ""),
        },
        None,
        {
            "family": "kyutai_tts",
            "folders": ["voices"],
            "files": [("voice-donations/*.ab@3.safetensors",)],
            "model": "{view}/lm.safetensors",
        },
    ),
    # The first releases have no config.json, and fixed file names.
    "no config": (
        dict.fromkeys(("model.safetensors", MIMI, "tokenizer_spm_32k_3.model"), ""),
        None,
        {"family": "moshi"},
    ),
}
CPU_CACHES_MB = {
    ("kyutai_stt", 131_072): (2_420, 2_802),
    ("kyutai_tts", 131_072): (1_636, 2_164),
    ("moshi", 524_288): (4_329, 8_657),
    ("personaplex", 524_288): (4_329, 8_657),
}
WITHOUT_SHAPE = dict.fromkeys(("kyutai-stt-2.6b", "kyutai-tts-0.75b"), "no config has been read")
BY_HAND = {"kyutai/stt-1b-en_fr": ("--model {release}", "")}
