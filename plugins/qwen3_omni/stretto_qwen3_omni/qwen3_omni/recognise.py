"""Recognises Qwen3-Omni releases, with or without a talker."""

from stretto.family.recognition import CONFIG, TOKENIZER, Listing, Match


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    config = listing.json(CONFIG)
    weights = listing.weights()
    if config.get("model_type") != "qwen3_omni_moe" or "thinker_config" not in config or not weights:
        return []
    words = ("--model", f"{{repo}}/{weights[0]}", "--config", f"{{repo}}/{CONFIG}", "--tokenizer", "{repo}")
    files = (*weights, CONFIG, *listing.present("generation_config.json", *TOKENIZER))
    return [Match("qwen3_omni", files, words)]
