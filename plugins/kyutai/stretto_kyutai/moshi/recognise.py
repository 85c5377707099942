"""Recognition of Moshi releases in Kyutai's PyTorch format, and in transformers format."""

from stretto.family.recognition import CONFIG, SINGLE, Listing, Match
from stretto_kyutai.kyutai_stt.recognise import (
    MIMI,
    MODEL,
    TOKENIZER,
    match_of_named_files,
    match_of_transformers,
)

# Names of files in the first releases, which lack config.json.
FIRST = {MODEL: SINGLE, MIMI: "tokenizer-e351c8d8-checkpoint125.safetensors", TOKENIZER: "tokenizer_spm_32k_3.model"}
VOICES = "voices.tgz"  # only in releases of a family that extends this one


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    config = listing.json(CONFIG)
    model_type = listing.json(CONFIG).get("model_type")
    if VOICES in listing.names:
        return []
    if model_type == "moshi" and "dim" not in config:
        return [match_of_transformers("moshi", listing)]
    quantized = sorted(name for name in listing.names if name.startswith(("model.q4.", "model.q8.")))
    if quantized and SINGLE not in listing.names:
        return [Match("moshi", refusal=f"expected unquantized weights, got {quantized[0]}")]
    if CONFIG not in listing.names:
        return [match_of_named_files("moshi", listing, FIRST)] if {*FIRST.values()} <= listing.names else []
    num_codes = config.get("n_q")
    num_steps = config.get("dep_q")
    is_duplex = isinstance(num_steps, int) and num_steps > 0 and num_codes == 2 * num_steps
    if not is_duplex or model_type not in ("moshi", None) or "dim" not in config:
        return []
    return [match_of_named_files("moshi", listing, {**FIRST, **config})]
