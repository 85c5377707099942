"""Recognition of CSM releases in transformers format from their lists of files."""

from stretto.family.recognition import CONFIG, TOKENIZER, Listing, Match

INDEX = "transformers.safetensors.index.json"  # Sesame's own model.safetensors has other names
SESAMES = "ckpt.pt"


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    if listing.json(CONFIG).get("model_type") != "csm":
        return []
    weights = listing.weights(INDEX)
    model = f"{{repo}}/{INDEX}"
    if not weights and SESAMES not in listing.names:  # written by `save_pretrained`; the converter checks the names
        weights = listing.weights()
        model = "{repo}"
    if not weights:
        expected = f"{INDEX}, or model.safetensors in transformers format"
        return [Match("csm", refusal=f"CSM: expected {expected}; files beside {SESAMES} have Sesame's names")]
    words = ("--model", model, "--config", f"{{repo}}/{CONFIG}", "--tokenizer", "{repo}", "--codec-from-model")
    return [Match("csm", (*weights, CONFIG, *listing.present("generation_config.json", *TOKENIZER)), words)]
