"""VibeVoice's small random releases, and facts about listings of others: see `lab/releases/layouts.py`."""

from pathlib import Path
from typing import Any

from lab.releases.layouts import INDEX, SHARD, Layout, hugging_face, whole
from lab.releases.random_tensors import split_weights
from plugins.vibevoice.lab import random_vibevoice_realtime
from plugins.vibevoice.tests import vibevoice_asr_release, vibevoice_release


def _vibevoice(folder: Path) -> list[str | Path]:
    release = vibevoice_release.write_release(folder / "release")
    split_weights(release, 3)
    return hugging_face(release)


def _vibevoice_asr(folder: Path) -> list[str | Path]:
    release = vibevoice_asr_release.write_release(folder / "release", "scripted")
    split_weights(release, 3)
    return hugging_face(release)


LAYOUTS = {
    # The voices are those of the authors' code, in the format of another repository, and the tokenizer is Qwen2.5's.
    "microsoft/VibeVoice-Realtime-0.5B": Layout(
        "vibevoice-realtime",
        lambda folder: whole(random_vibevoice_realtime.write_release(folder / "release")),
        {"release": ("config.json", "model.safetensors")},
        ("release/tokenizer.json", "release/voices/*.pt", "release/voices/*.safetensors"),
    ),
    "vibevoice/VibeVoice-1.5B-hf": Layout(
        "vibevoice",
        _vibevoice,
        {"release": ("config.json", "generation_config.json", SHARD, INDEX, "tokenizer.json")},
        unused=("release/generation_config.json",),
        is_checked=False,
    ),
    "microsoft/VibeVoice-ASR-HF": Layout(
        "vibevoice-asr", _vibevoice_asr, {"release": ("config.json", SHARD, INDEX, "tokenizer.json")}
    ),
}
BY_HAND = {"microsoft/VibeVoice-ASR-HF": ("--model {release} --config {release}/config.json --tokenizer {release}", "")}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "VibeVoice Realtime without weights": (
        {"config.json": {"model_type": "vibevoice_streaming"}},
        "VibeVoice Realtime: expected model.safetensors",
    ),
    "VibeVoice-ASR without weights": (
        {"config.json": {"model_type": "vibevoice_asr"}},
        "VibeVoice-ASR: expected model.safetensors",
    ),
    "VibeVoice without weights": ({"config.json": {"model_type": "vibevoice"}}, "expected model.safetensors"),
}
DETECTED: dict[str, tuple[dict[str, Any], str | None, dict[str, Any]]] = {
    "the authors' format": (
        {"config.json": {"model_type": "vibevoice", "acoustic_tokenizer_config": {}}, "model.safetensors": ""},
        None,
        {"family": "vibevoice", "repositories": ["Qwen/Qwen2.5-1.5B"]},
    ),
    "VibeVoice-ASR in the authors' format": (
        {
            "config.json": {
                "model_type": "vibevoice",
                "architectures": ["VibeVoiceForASRTraining"],
                "acoustic_tokenizer_config": {},
            },
            "model.safetensors": "",
        },
        None,
        {"family": "vibevoice_asr", "repositories": ["Qwen/Qwen2.5-7B"]},
    ),
    "realtime": (
        {"config.json": {"model_type": "vibevoice_streaming"}, "model.safetensors": ""},
        None,
        {
            "family": "vibevoice_realtime",
            "repositories": ["mnmly/VibeVoice-Realtime-0.5B-mlx", "Qwen/Qwen2.5-0.5B"],
            "model": "{view}",
        },
    ),
}
CPU_CACHES_MB = {
    ("vibevoice", 28_672): (1_620,),
    ("vibevoice", 57_344): (1_886,),
    ("vibevoice_asr", 57_344): (3_762, 7_524),
    ("vibevoice_realtime", 12_288): (546,),
}
