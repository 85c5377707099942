"""Recognises CSM releases in transformers format."""

from stretto.families.recognition import CONFIG, TOKENIZER, Listing, Match

INDEX = "transformers.safetensors.index.json"
CONVERT = (
    "--model",
    f"{{repo}}/{INDEX}",
    "--config",
    f"{{repo}}/{CONFIG}",
    "--tokenizer",
    "{repo}",
    "--codec-from-model",
)


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    if listing.json(CONFIG).get("model_type") != "csm":
        return []
    weights = listing.weights(INDEX)
    if not weights:
        refusal = f"CSM is read only in the format of {INDEX}; model.safetensors and ckpt.pt have Sesame's names"
        return [Match("csm", refusal=refusal)]
    return [Match("csm", (*weights, CONFIG, *listing.present("generation_config.json", *TOKENIZER)), CONVERT)]
