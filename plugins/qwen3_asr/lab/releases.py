"""Qwen3-ASR's small random releases, and facts about listings of others: see `lab/releases/layouts.py`."""

from pathlib import Path
from typing import Any

from lab.releases.layouts import BPE, INDEX, SHARD, Layout, hugging_face
from lab.releases.random_tensors import split_weights
from plugins.qwen3_asr.lab.random_qwen3_asr import config, write_release


def _sharded(folder: Path) -> list[str | Path]:
    release = write_release(folder / "release", "1.7B")
    split_weights(release, 2)
    return hugging_face(release)


def _whole(folder: Path) -> list[str | Path]:
    return hugging_face(write_release(folder / "release", "0.6B"))


LAYOUTS = {
    "Qwen/Qwen3-ASR-1.7B": Layout("qwen3-asr", _sharded, {"release": ("config.json", SHARD, INDEX, *BPE)}),
    "Qwen/Qwen3-ASR-0.6B": Layout("qwen3-asr", _whole, {"release": ("config.json", "model.safetensors", *BPE)}),
}
BY_HAND = dict.fromkeys(LAYOUTS, ("--model {release} --config {release}/config.json --tokenizer {release}", ""))
ALIGNER = {"model_type": "qwen3_asr", "thinker_config": config()["thinker_config"] | {"classify_num": 5000}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Qwen3-ForcedAligner": (
        {"config.json": ALIGNER, "model.safetensors": ""},
        "Qwen3-ASR: config.json: thinker_config.classify_num: expected no value, got 5000",
    ),
}
CPU_CACHES_MB = {
    ("qwen3_asr", 114_688): (1_886, 3_773),
}
