"""Recognises Fish Audio S2 releases: a repository is one release."""

from stretto.family.recognition import CONFIG, TOKENIZER, Listing, Match

MODEL_TYPE = "fish_qwen3_omni"
CODEC = "codec.pth"
CONVERT = ("--model", "{repo}", "--config", f"{{repo}}/{CONFIG}", "--tokenizer", "{repo}")


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    if listing.json(CONFIG).get("model_type") != MODEL_TYPE:
        return []
    weights = listing.weights()
    tokenizer = listing.present(*TOKENIZER)
    if not weights or CODEC not in listing.names or "tokenizer.json" not in tokenizer:
        expected = f"model.safetensors or the files of its index, {CODEC} and tokenizer.json"
        return [Match("fish_s2", refusal=f"Fish Audio S2: expected {expected}")]
    return [Match("fish_s2", (CONFIG, *weights, CODEC, *tokenizer), CONVERT)]
