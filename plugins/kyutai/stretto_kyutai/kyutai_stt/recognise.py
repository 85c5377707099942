"""Recognition of Kyutai STT releases."""

from collections.abc import Mapping
from typing import Any

from stretto.family.recognition import CONFIG, SINGLE, Listing, Match

TRANSFORMERS_TOKENIZER = "tokenizer.json"
# written by transformers 4, and 5
FEATURES = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
MODEL = "moshi_name"
MIMI = "mimi_name"
MIMI_CONFIG = "mimi_config_name"
TOKENIZER = "tokenizer_name"


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    config = listing.json(CONFIG)
    model_type = config.get("model_type")
    if model_type == "kyutai_speech_to_text":
        delays = (listing.present(FEATURES) or listing.present(PROCESSOR)) or (FEATURES,)
        return [match_of_transformers("kyutai_stt", listing, *delays)]
    if config.get("dep_q") != 0 or model_type not in ("stt", None) or not {MIMI, TOKENIZER} <= config.keys():
        return []
    return [match_of_named_files("kyutai_stt", listing, config)]


def match_of_named_files(family: str, listing: Listing, config: Mapping[str, Any], *others: str) -> Match:
    """Match a release whose config names its files; refuse it if one of these or of `others` is missing."""
    model = str(config.get(MODEL) or SINGLE)
    named = [str(config[key]) for key in (MIMI, MIMI_CONFIG, TOKENIZER) if config.get(key)]
    files = (model, *named, *others)
    missing = [name for name in files if name not in listing.names]
    if missing:
        return Match(family, refusal=f"{missing[0]}, which the release must have, is missing")
    configs = listing.present(CONFIG)
    words = ("--model", f"{{repo}}/{model}", *(("--config", f"{{repo}}/{CONFIG}") if configs else ()))
    return Match(family, (*files, *configs), words)


def match_of_transformers(family: str, listing: Listing, *others: str) -> Match:
    """Return the match for a release in transformers format, or a refusal if a file is missing."""
    files = (*listing.weights(), CONFIG, TRANSFORMERS_TOKENIZER, *others)
    missing = [name for name in files if name not in listing.names]
    if missing or not listing.weights():
        first = missing[0] if listing.weights() else SINGLE
        return Match(family, refusal=f"{first}, which a release in transformers format must have, is missing")
    return Match(family, files, ("--model", "{repo}", "--config", f"{{repo}}/{CONFIG}", "--tokenizer", "{repo}"))
