"""Qwen3-Omni's small random releases, and facts about listings of others: see `lab/releases/layouts.py`."""

from pathlib import Path

from lab.releases.layouts import BPE, INDEX, SHARD, Layout
from plugins.qwen3_omni.lab import random_qwen3_omni


def _qwen3_omni(folder: Path) -> list[str | Path]:
    release = random_qwen3_omni.write_release(folder / "release")
    return ["--model", release / INDEX, "--config", release / "config.json", "--tokenizer", release]


LAYOUTS = {
    "Qwen/Qwen3-Omni-30B-A3B-Instruct": Layout(
        "qwen3-omni", _qwen3_omni, {"release": ("config.json", SHARD, INDEX, *BPE)}
    ),
}
CPU_CACHES_MB = {
    ("qwen3_omni", 98_304): (6_449, 12_897),
    ("qwen3_omni_talker", 20_480): (1_344, 2_688),
}
