"""Recognises Kyutai STT releases."""

from collections.abc import Mapping
from typing import Any

from stretto.families.recognition import CONFIG, SINGLE, Listing, Match

MODEL, MIMI, MIMI_CONFIG, TOKENIZER = "moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name"


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    config = listing.json(CONFIG)
    kind = config.get("model_type")
    if kind == "kyutai_speech_to_text":
        refusal = "Kyutai STT in transformers format is not read; expected the repository without -trfs"
        return [Match("kyutai_stt", refusal=refusal)]
    if config.get("dep_q") != 0 or kind not in ("stt", None) or not {MIMI, TOKENIZER} <= config.keys():
        return []
    return [match_of_named_files("kyutai_stt", listing, config)]


def match_of_named_files(family: str, listing: Listing, config: Mapping[str, Any], *others: str) -> Match:
    """Return the match for a release whose config.json names its files, or a refusal if one is missing.

    Args:
        family: Family of the release.
        listing: Files of the release.
        config: Contents of config.json, or of those that releases without this file have.
        others: Further files that the release must have.
    """
    model = str(config.get(MODEL) or SINGLE)
    named = [str(config[key]) for key in (MIMI, MIMI_CONFIG, TOKENIZER) if config.get(key)]
    files = (model, *named, *others)
    missing = [name for name in files if name not in listing.names]
    if missing:
        return Match(family, refusal=f"{missing[0]}, which the release must have, is missing")
    own = listing.present(CONFIG)
    words = ("--model", f"{{repo}}/{model}", *(("--config", f"{{repo}}/{CONFIG}") if own else ()))
    return Match(family, (*files, *own), words)
