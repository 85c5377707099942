"""Recognition of IndexTTS-2 releases, and refusal of other versions."""

from stretto.family.recognition import Listing, Match, Needed

CONFIG = "config.yaml"
MODEL = "gpt.pth"
VERSION = 2.0
MARK = "wav2vec2bert_stats.pt"  # a file of version 2 and later
FILES = ("s2mel.pth", "bpe.model", MARK, "feat1.pt", "feat2.pt")
SEMANTIC = "semantic_codec/model.safetensors"
CACHE = "hf_cache"  # folder in which the authors' code places other repositories
NEEDED = (
    Needed("facebook/w2v-bert-2.0", ("model.safetensors",), f"{CACHE}/w2v-bert-2.0"),
    Needed("amphion/MaskGCT", (SEMANTIC,), CACHE),
    Needed("funasr/campplus", ("campplus_cn_common.bin",), CACHE),
    Needed("nvidia/bigvgan_v2_22khz_80band_256x", ("config.json", "bigvgan_generator.pt"), f"{CACHE}/bigvgan"),
)


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    if not {CONFIG, MODEL, MARK} <= listing.names:
        return []
    version = listing.yaml(CONFIG).get("version", VERSION)
    if version != VERSION:
        return [
            Match("indextts2", refusal=f"IndexTTS-2: {CONFIG}: version: expected {VERSION}, got {str(version)[:40]!r}")
        ]
    missing = [name for name in FILES if name not in listing.names]
    if missing:
        return [Match("indextts2", refusal=f"IndexTTS-2: {missing[0]} is missing")]
    missing_companions = tuple(needed for needed in NEEDED if not _has(listing, needed))
    return [
        Match(
            "indextts2",
            (CONFIG, MODEL, *FILES, *listing.present(f"{CACHE}/*")),
            ("--model", "{view}" if missing_companions else "{repo}"),
            companions=missing_companions,
            needs=("recording",),
        )
    ]


def _has(listing: Listing, needed: Needed) -> bool:
    """Return True if a listing has another repository's files, by their names there or in the authors' cache."""
    flat = f"{CACHE}/semantic_codec_model.safetensors"
    names = [f"{needed.to}/{name}" for name in needed.files]
    return listing.names.issuperset(names) or (names == [f"{CACHE}/{SEMANTIC}"] and flat in listing.names)
