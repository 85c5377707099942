"""Fish Audio S2's small random releases, and facts about listings of others: see `lab/releases/layouts.py`."""

from pathlib import Path
from typing import Any

from lab.releases.layouts import INDEX, SHARD, Layout
from lab.releases.random_tensors import split_weights
from plugins.fish_s2.lab import random_fish_s2


def _fish_s2(folder: Path) -> list[str | Path]:
    release = random_fish_s2.write_release(folder / "release", "deep")
    (release / "special_tokens_map.json").write_text("{}")
    split_weights(release, 2)
    return [*random_fish_s2.command(release)[1:]]


LAYOUTS = {
    "fishaudio/s2-pro": Layout(
        "fish-s2",
        _fish_s2,
        {
            "release": (
                *("config.json", SHARD, INDEX, "codec.pth"),
                *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
            )
        },
        ("release/vocab.json", "release/merges.txt"),
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Fish Audio S2 without its codec": (
        {"config.json": {"model_type": "fish_qwen3_omni"}, "model.safetensors": "", "tokenizer.json": {}},
        "Fish Audio S2: expected model.safetensors or the files of its index, codec.pth and tokenizer.json",
    ),
}
CPU_CACHES_MB = {
    ("fish_s2", 147_456): (2_157, 2_435),
}
