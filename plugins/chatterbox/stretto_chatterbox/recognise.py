"""Recognition of Chatterbox's language models, and of the files that each needs; a folder may contain several."""

import re

from stretto.family.recognition import QWEN_TOKENIZER, Listing, Match

VOICE = "conds.pt"
TURBO_TOKENIZER = (*QWEN_TOKENIZER, "added_tokens.json", "special_tokens_map.json")
# Files that each kind of language model needs, and further files that are read if they exist.
KINDS = {
    r"t3_cfg": (("s3gen.safetensors", "ve.safetensors", "tokenizer.json"), ()),
    r"t3_mtl23ls_v[23]": (("s3gen.pt", "ve.pt", "grapheme_mtl_merged_expanded_v1.json"), ("Cangjie5_TC.json",)),
    r"t3_(turbo|nano)_v1": (("s3gen_meanflow.safetensors", "ve.safetensors"), TURBO_TOKENIZER),
}
FLASH = "t3_flash.safetensors"
FLASH_REFUSAL = (
    "Chatterbox Flash is not supported: it fills blocks of 16 codes in up to 10 passes over the same positions,"
    " and the engine computes each position once"
)


def recognise(listing: Listing) -> list[Match]:
    """Return a match for each language model in a listing."""
    matches = []
    if FLASH in listing.names:
        matches.append(Match("chatterbox", (FLASH,), part="t3_flash", refusal=FLASH_REFUSAL))
    for name in sorted(listing.names):
        stem, _, suffix = name.partition(".")
        for pattern, (needed, optional) in KINDS.items():
            if suffix == "safetensors" and re.fullmatch(pattern, stem):
                files = (name, *needed, VOICE)
                missing = [file for file in files if file not in listing.names]
                refusal = f"Chatterbox {stem}: {missing[0]} is missing" if missing else ""
                words = ("--model", f"{{repo}}/{name}", "--tokenizer", "{repo}", "--codec", "{repo}")
                matches.append(Match("chatterbox", (*files, *listing.present(*optional)), words, stem, refusal=refusal))
    return matches
