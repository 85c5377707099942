"""IndexTTS-2's small random release, and facts about listings of others: see `lab/releases/layouts.py`."""

from pathlib import Path
from typing import Any

from lab.releases.layouts import Layout, whole
from plugins.indextts2.lab import random_indextts2

OWN = ("config.yaml", "gpt.pth", "s2mel.pth", "bpe.model", "wav2vec2bert_stats.pt", "feat1.pt", "feat2.pt")
CACHE = "release/hf_cache"


def _indextts2(folder: Path) -> list[str | Path]:
    """Write a release with MaskGCT's file where `stretto run` places it, not where the authors' code does."""
    release = random_indextts2.write_release(folder / "release")
    cache = release / "hf_cache"
    (cache / "semantic_codec").mkdir()
    (cache / "semantic_codec_model.safetensors").rename(cache / "semantic_codec" / "model.safetensors")
    return whole(release)


LAYOUTS = {
    "IndexTeam/IndexTTS-2": Layout(
        "indextts2",
        _indextts2,
        {
            "release": OWN,
            f"{CACHE}/w2v-bert-2.0": ("model.safetensors",),
            CACHE: ("campplus_cn_common.bin",),
            f"{CACHE}/semantic_codec": ("model.safetensors",),
            f"{CACHE}/bigvgan": ("config.json", "bigvgan_generator.pt"),
        },
    ),
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "IndexTTS-2.5": (dict.fromkeys(OWN, "") | {"config.yaml": "version: 2.5"}, "version: expected 2.0, got '2.5'"),
    "IndexTTS-2 without a tokenizer": (
        {name: "version: 2.0" for name in OWN if name != "bpe.model"},
        "bpe.model is missing",
    ),
}
CPU_CACHES_MB = {("indextts2", 122_880): (2_156, 2_163)}
DETECTED: dict[str, tuple[dict[str, Any], str | None, dict[str, Any]]] = {
    "IndexTTS-2": (
        dict.fromkeys(OWN, "") | {"config.yaml": "version: 2.0"},
        None,
        {
            "model": "{view}",
            "repositories": [
                "facebook/w2v-bert-2.0",
                "amphion/MaskGCT",
                "funasr/campplus",
                "nvidia/bigvgan_v2_22khz_80band_256x",
            ],
        },
    ),
    "IndexTTS-2 with files of some other repositories": (
        dict.fromkeys((*OWN, "hf_cache/campplus_cn_common.bin", "hf_cache/semantic_codec_model.safetensors"), "")
        | {"config.yaml": "version: 2.0"},
        None,
        {"model": "{view}", "repositories": ["facebook/w2v-bert-2.0", "nvidia/bigvgan_v2_22khz_80band_256x"]},
    ),
}
