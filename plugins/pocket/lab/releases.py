"""Small random releases of Pocket TTS and Phonon, and facts about listings of others: see `lab/releases/layouts.py`."""

from pathlib import Path
from typing import Any

from lab.releases.layouts import Layout, whole
from plugins.pocket.lab import random_phonon, random_pocket

PHONON = {"flow_lm": {}, "mimi": {}, "eos_threshold": 0}
LANGUAGES = {
    f"languages/{language}/{name}": ""
    for language in ("english", "french_24l", "klingon")
    for name in ("model.safetensors", "tokenizer.json", "embeddings/alba.safetensors")
}


def _pocket(folder: Path) -> list[str | Path]:
    """The YAML file comes from the authors' package."""
    release = random_pocket.write_release(folder / "english")
    (release / "config.yaml").rename(release / "english.yaml")
    return whole(release)


LAYOUTS = {
    "kyutai/pocket-tts-without-voice-cloning": Layout(
        "pocket-tts",
        _pocket,
        {"english": ("english.yaml", "model.safetensors", "tokenizer.json", "embeddings/*.safetensors")},
    ),
    "gradium/phonon-31m-en": Layout(
        "phonon",
        lambda folder: whole(random_phonon.write_release(folder / "release")),
        {"release": ("config.json", "model.safetensors", "tokenizer.json", "voices/*.safetensors")},
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Phonon of transformers without weights": (
        {"config.json": {"model_type": "gradium_phonon_tts"}, "tokenizer.json": {}},
        "phonon in transformers format: no model.safetensors",
    ),
    "Phonon without voices": (
        {"config.json": PHONON, "model.safetensors": "", "tokenizer.json": {}},
        r"Phonon: no voices/\*.safetensors",
    ),
    "Pocket TTS of transformers without a tokenizer": (
        {"config.json": {"model_type": "pocket_tts"}, "model.safetensors": ""},
        "pocket_tts in transformers format: no tokenizer.json",
    ),
    "Pocket TTS without YAML": (
        {"model.safetensors": "", "tokenizer.json": {}, "embeddings/a.safetensors": ""},
        "no YAML file with flow_lm and mimi",
    ),
    "Pocket TTS in several languages": (
        LANGUAGES,
        "with 2 models: acme/voice#languages/english, acme/voice#languages/french_24l",
    ),
    "Pocket TTS in an unknown language": (
        {name: text for name, text in LANGUAGES.items() if "klingon" in name},
        "languages/klingon has no YAML file",
    ),
}
DETECTED: dict[str, tuple[dict[str, Any], str | None, dict[str, Any]]] = {
    "packaged config of a language": (
        LANGUAGES,
        "languages/english",
        {"family": "pocket_tts", "model": "{repo}/languages/english"},
    ),
    **{
        f"{family}, codec of a {kind}": (
            {
                "config.json": {"model_type": model_type},
                "model.safetensors": "",
                "tokenizer.json": {},
                "processor_config.json": {"audio_tokenizer": {"audio_tokenizer_name_or_path": codec}},
            },
            None,
            {"family": family, "repositories": repositories, "requires": requires},
        )
        for family, model_type in (("pocket_tts", "pocket_tts"), ("phonon", "gradium_phonon_tts"))
        # A folder on the machine that made the release is no repository; then the user names one.
        for kind, codec, repositories, requires in (
            ("repository", "acme/codec", ["acme/codec"], ()),
            ("folder", "/home/codec", [], ("codec",)),
        )
    },
}
CPU_CACHES_MB = {
    ("phonon", 18_432): (460,),
    ("pocket_tts", 24_576): (613,),
    ("pocket_tts", 16_384): (409,),
    ("pocket_tts", 2_048): (68,),
    ("pocket_tts", 4_096): (103,),
    ("pocket_tts", 98_304): (2_160,),
}
