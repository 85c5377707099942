"""CosyVoice 3's small random releases, and facts about listings of others: see `lab/releases/layouts.py`."""

from pathlib import Path
from typing import Any

from lab.releases.layouts import BPE, Layout, whole
from plugins.cosyvoice3.lab import random_cosyvoice3


def _cosyvoice3(folder: Path) -> list[str | Path]:
    return whole(random_cosyvoice3.write_release(folder / "release"))


LAYOUTS = {
    "FunAudioLLM/Fun-CosyVoice3-0.5B-2512": Layout(
        "cosyvoice3",
        _cosyvoice3,
        {
            "release": (
                "cosyvoice3.yaml",
                *("llm.pt", "flow.pt", "hift.pt", "campplus.onnx", "speech_tokenizer_v3.onnx"),
            ),
            "release/CosyVoice-BlankEN": ("config.json", *BPE),
        },
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "CosyVoice 2": ({"cosyvoice2.yaml": "a: 1", "llm.pt": ""}, "of CosyVoice 3, got cosyvoice2.yaml"),
    "CosyVoice 3 without flow": ({"cosyvoice3.yaml": "a: 1", "llm.pt": ""}, "flow.pt is missing"),
}
CPU_CACHES_MB = {
    ("cosyvoice3", 12_288): (228, 454),
}
