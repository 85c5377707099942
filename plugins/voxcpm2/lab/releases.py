"""VoxCPM2's small random releases, and facts about listings of others: see `lab/releases/layouts.py`."""

from pathlib import Path
from typing import Any

from lab.releases.layouts import Layout, whole
from plugins.voxcpm2.lab import random_voxcpm2

LATENTS: dict[str, Any] = {"lm_config": {}, "encoder_config": {}, "dit_config": {}}


def _voxcpm2(folder: Path) -> list[str | Path]:
    return whole(random_voxcpm2.write_release(folder / "release"))


LAYOUTS = {
    "openbmb/VoxCPM2": Layout(
        "voxcpm2", _voxcpm2, {"release": ("config.json", "model.safetensors", "audiovae.pth", "tokenizer.json")}
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "VoxCPM 1": (
        {"config.json": LATENTS | {"architecture": "voxcpm"}, "audiovae.pth": "", "model.safetensors": ""},
        "architecture: expected voxcpm2, got 'voxcpm'",
    ),
    "VoxCPM2 with a mean head": (
        {"config.json": LATENTS | {"dit_config": {"dit_mean_mode": True}}, "audiovae.pth": "", "model.safetensors": ""},
        "dit_mean_mode: expected false",
    ),
    "VoxCPM2 without codec": ({"config.json": LATENTS, "model.safetensors": ""}, "audiovae.safetensors or audiovae"),
}
CPU_CACHES_MB = {
    ("voxcpm2", 36_864): (1_075,),
}
