"""Higgs Audio's small random releases, and facts about listings of others: see `lab/releases/layouts.py`."""

from pathlib import Path
from typing import Any

from lab.releases.layouts import INDEX, TOKENIZER, Layout, hugging_face
from plugins.higgs_audio.lab import random_higgs_audio, random_higgs_audio_v3

HIGGS = {"model_type": "higgs_multimodal_qwen3", "audio_encoder_config": {"encoder_type": "discrete"}}


def _higgs_audio(folder: Path) -> list[str | Path]:
    release = random_higgs_audio.write_release(folder / "release", random_higgs_audio.make_model())
    return [*release.command[1:]]


LAYOUTS = {
    "bosonai/higgs-tts-2-3b-base": Layout(
        "higgs-audio-v2",
        _higgs_audio,
        {
            "release": ("config.json", "generation_config.json", "model.safetensors", *TOKENIZER),
            "tokenizer": ("config.json", "model.safetensors"),
        },
    ),
    "bosonai/higgs-tts-3-4b": Layout(
        "higgs-audio-v3",
        lambda folder: hugging_face(random_higgs_audio_v3.write_release(folder / "release")),
        {"release": ("config.json", "model.safetensors", INDEX, "tokenizer.json", "tokenizer_config.json")},
        ("release/vocab.json", "release/merges.txt"),
        unused=("release/model.safetensors.index.json",),
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Boson's Higgs Audio": ({"config.json": {"model_type": "higgs_audio"}, "model.safetensors": ""}, "transformers"),
    "Higgs Audio shards": (
        {"config.json": {"model_type": "higgs_audio_v2"}},
        "Higgs Audio v2: expected model.safetensors",
    ),
    "Higgs Audio v3 for recognition": (
        {"config.json": HIGGS | {"audio_encoder_config": {"encoder_type": "whisper"}}, "model.safetensors": ""},
        "audio_encoder_config.encoder_type: expected 'discrete', got 'whisper'",
    ),
    "Higgs Audio v3 without a tokenizer": ({"config.json": HIGGS, "model.safetensors": ""}, "and tokenizer.json"),
}
CPU_CACHES_MB = {
    ("higgs_audio_v2", 114_688): (2_118, 2_162),
    ("higgs_audio_v3", 147_456): (2_157, 2_435),
}
