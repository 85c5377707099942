"""Magpie TTS's small random release, and facts about listings of others: see `lab/releases/layouts.py`."""

from pathlib import Path
from typing import Any

from lab.releases.layouts import Layout
from plugins.magpie.lab import random_magpie
from plugins.magpie.lab.random_magpie import CODEC, MODEL


def _magpie(folder: Path) -> list[str | Path]:
    release = random_magpie.write_release(folder / "release")
    (folder / "codec").mkdir()
    (release / CODEC).rename(folder / "codec" / CODEC)
    return ["--model", release / MODEL, "--codec", folder / "codec" / CODEC]


LAYOUTS = {
    "nvidia/magpie_tts_multilingual_357m": Layout("magpie", _magpie, {"release": (MODEL,), "codec": (CODEC,)}),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another archive of NeMo": ({"parakeet.nemo": ""}, "not a release of a supported family"),
}
DETECTED: dict[str, tuple[dict[str, Any], str | None, dict[str, Any]]] = {
    "Magpie TTS": ({MODEL: ""}, None, {"repositories": [f"nvidia/{CODEC.removesuffix('.nemo')}"]}),
    "Magpie TTS with its codec": (
        {MODEL: "", CODEC: ""},
        None,
        {"repositories": [], "codec": f"{{repo}}/{CODEC}"},
    ),
    "one of two": (
        {MODEL: "", "magpie_tts_2.nemo": ""},
        "magpie_tts_2",
        {"model": "{repo}/magpie_tts_2.nemo"},
    ),
}
CPU_CACHES_MB = {
    ("magpie", 36_864): (429, 857),
}
