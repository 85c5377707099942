"""MOSS-TTS's small random releases, and facts about listings of others: see `lab/releases/layouts.py`."""

from pathlib import Path
from typing import Any

from lab.releases.layouts import INDEX, SHARD, TOKENIZER, Layout
from lab.releases.random_tensors import split_weights
from plugins.moss.lab import random_moss, random_moss_local, random_moss_nano, random_moss_realtime

MOSS = {"model_type": "moss_tts_delay"}


def _moss_tts(folder: Path) -> list[str | Path]:
    release = random_moss.write_release(folder / "release", "served")
    for written in (release, folder / "codec"):
        split_weights(written, 2)
    return [*random_moss.command(release)[1:]]


def _moss_tts_local(folder: Path) -> list[str | Path]:
    release = random_moss_local.write_release(folder / "release", "served")
    for written in (release, folder / "codec"):
        split_weights(written, 2)
    return [*random_moss_local.command(release)[1:]]


def _moss_tts_nano(folder: Path) -> list[str | Path]:
    release = random_moss_nano.write_release(folder / "release", "served")
    split_weights(folder / "codec", 1)
    return [*random_moss_nano.command(release)[1:]]


def _moss_tts_realtime(folder: Path) -> list[str | Path]:
    release = random_moss_realtime.write_release(folder / "release", "served")
    for written in (release, folder / "codec"):
        split_weights(written, 2)
    return [*random_moss_realtime.command(release)[1:]]


LAYOUTS = {
    "OpenMOSS-Team/MOSS-TTS-v1.5": Layout(
        "moss-tts",
        _moss_tts,
        {
            "release": ("config.json", SHARD, INDEX, *TOKENIZER),
            "codec": ("config.json", SHARD, INDEX),  # OpenMOSS-Team/MOSS-Audio-Tokenizer
        },
    ),
    "OpenMOSS-Team/MOSS-TTS-Local-Transformer-v1.5": Layout(
        "moss-tts-local",
        _moss_tts_local,
        {
            "release": ("config.json", SHARD, INDEX, *TOKENIZER),
            "codec": ("config.json", SHARD, INDEX),  # OpenMOSS-Team/MOSS-Audio-Tokenizer-v2
        },
    ),
    "OpenMOSS-Team/MOSS-TTS-Nano": Layout(
        "moss-tts-nano",
        _moss_tts_nano,
        {
            "release": ("config.json", "pytorch_model.bin", "tokenizer.model", "tokenizer_config.json"),
            "codec": ("config.json", SHARD, INDEX),  # OpenMOSS-Team/MOSS-Audio-Tokenizer-Nano
        },
    ),
    "OpenMOSS-Team/MOSS-TTS-Realtime": Layout(
        "moss-tts-realtime",
        _moss_tts_realtime,
        {
            "release": ("config.json", SHARD, INDEX, *TOKENIZER),
            "codec": ("config.json", SHARD, INDEX),  # OpenMOSS-Team/MOSS-Audio-Tokenizer
        },
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "MOSS-TTS-Local without weights": (
        {"config.json": {"model_type": "moss_tts_local"}},
        "MOSS-TTS-Local: expected model.safetensors",
    ),
    "MOSS-TTS-Local 1.0": (
        {"config.json": MOSS | {"local_num_layers": 4}},
        "local_num_layers: expected no value, got 4",
    ),
    "MOSS-TTS-Local with a long value": (
        {"config.json": MOSS | {"local_num_layers": "a" * 1000}},
        "local_num_layers: expected no value, got 'a{59}…$",
    ),
    "MOSS-TTS-Nano without weights": (
        {"config.json": {"model_type": "moss_tts_nano"}},
        "MOSS-TTS-Nano: expected pytorch_model.bin and tokenizer.model",
    ),
    "MOSS-TTS-Realtime without weights": (
        {"config.json": {"model_type": "moss_tts_realtime"}},
        "MOSS-TTS-Realtime: expected model.safetensors",
    ),
    "MOSS-TTS without weights": ({"config.json": MOSS}, "MOSS-TTS: expected model.safetensors"),
}
CPU_CACHES_MB = {
    ("moss_tts", 147_456): (1_840, 2_435),
    ("moss_tts_local", 147_456): (1_840, 2_435),
    ("moss_tts_realtime", 114_688): (1_431, 2_162),
    ("moss_tts_nano", 36_864): (460, 921),
}
