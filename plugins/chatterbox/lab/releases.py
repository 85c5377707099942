"""Chatterbox's small random releases, and facts about listings of others: see `lab/releases/layouts.py`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.releases.layouts import Layout, whole
from plugins.chatterbox.lab import random_chatterbox

TURBO = ("s3gen_meanflow.safetensors", "ve.safetensors", "conds.pt", "vocab.json", "merges.txt", "added_tokens.json")
OWN_VOICE = ("release/voices/*.pt",)


def _chatterbox(is_multilingual: bool) -> Callable[[Path], list[str | Path]]:
    def write(folder: Path) -> list[str | Path]:
        release = random_chatterbox.write_release(folder / "release", is_multilingual)
        return [*random_chatterbox.command(release, folder)[1:-2]]

    return write


def _turbo(sizes: random_chatterbox.Gpt2Sizes) -> Callable[[Path], list[str | Path]]:
    return lambda folder: whole(random_chatterbox.write_turbo(folder / "release", sizes))


LAYOUTS = {
    "ResembleAI/chatterbox": Layout(
        "chatterbox",
        _chatterbox(is_multilingual=False),
        {"release": ("t3_cfg.safetensors", "s3gen.safetensors", "ve.safetensors", "tokenizer.json", "conds.pt")},
        ("release/backbone.json", *OWN_VOICE),
    ),
    "ResembleAI/chatterbox, multilingual": Layout(
        "chatterbox",
        _chatterbox(is_multilingual=True),
        {
            "release": (
                "t3_mtl23ls_v3.safetensors",
                *("s3gen.pt", "ve.pt", "conds.pt"),
                *("grapheme_mtl_merged_expanded_v1.json", "Cangjie5_TC.json"),
            )
        },
        ("release/backbone.json", *OWN_VOICE),
    ),
    "ResembleAI/chatterbox-turbo": Layout(
        "chatterbox", _turbo(random_chatterbox.TURBO), {"release": ("t3_turbo_v1.safetensors", *TURBO)}, OWN_VOICE
    ),
    "ResembleAI/chatterbox-nano": Layout(
        "chatterbox", _turbo(random_chatterbox.NANO), {"release": ("t3_nano_v1.safetensors", *TURBO)}, OWN_VOICE
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Chatterbox without S3Gen": ({"t3_cfg.safetensors": "", "conds.pt": ""}, "s3gen.safetensors is missing"),
}
DETECTED: dict[str, tuple[dict[str, Any], str | None, dict[str, Any]]] = {
    "one of two": (
        {
            **dict.fromkeys(("t3_cfg.safetensors", "s3gen.safetensors", "ve.safetensors", "tokenizer.json"), ""),
            **dict.fromkeys(("t3_mtl23ls_v3.safetensors", "s3gen.pt", "ve.pt", "conds.pt"), ""),
            "grapheme_mtl_merged_expanded_v1.json": "",
        },
        "t3_mtl23ls_v3",
        {"name": "x-t3-mtl23ls-v3", "family": "chatterbox", "model": "{repo}/t3_mtl23ls_v3.safetensors"},
    ),
}
CPU_CACHES_MB = {
    ("chatterbox", 122_880): (2_156, 2_163),
    ("chatterbox", 36_864): (682, 1_362),
    ("chatterbox", 98_304): (1_815, 2_160),
}
BY_HAND = {
    "ResembleAI/chatterbox": (
        "--model {release}/t3_cfg.safetensors --tokenizer {release} --codec {release}",
        "backbone={release}/backbone.json",
    )
}
