"""Recognition of Orpheus releases, which are Llama models with tokens for SNAC's codes."""

from stretto.family.recognition import CONFIG, MAX_TOKENIZER_BYTES, TOKENIZER, Listing, Match, Needed

CODEC = Needed("hubertsiuzdak/snac_24khz", ("config.json", "pytorch_model.bin"))
CODE = "<custom_token_10>"


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    weights = listing.weights()
    if listing.json(CONFIG).get("model_type") != "llama" or not weights:
        return []
    names = ("tokenizer_config.json", "tokenizer.json")
    if not any(CODE in (listing.text(name, MAX_TOKENIZER_BYTES) or "") for name in names):
        return []
    words = ("--model", "{repo}", "--config", f"{{repo}}/{CONFIG}", "--tokenizer", "{repo}", "--codec", "{companion1}")
    files = (*weights, CONFIG, *listing.present("generation_config.json", *TOKENIZER))
    return [Match("orpheus", files, words, companions=(CODEC,))]
