"""Recognition of Phonon releases; a repository is one release, in Gradium's or transformers' layout."""

from stretto.family.recognition import CONFIG, Listing, Match
from stretto_pocket.pocket_tts.recognise import transformers_match

FILES = (CONFIG, "model.safetensors", "tokenizer.json")
VOICES = ("voices/*.safetensors", "embeddings/*.safetensors", "default-voice.safetensors")


def recognise(listing: Listing) -> list[Match]:
    """Return a match for the release in a listing."""
    config = listing.json(CONFIG)
    if not {"flow_lm", "mimi", "eos_threshold"} <= config.keys():
        if config.get("model_type") != "gradium_phonon_tts":
            return []
        return [transformers_match(listing, "phonon", *VOICES)]
    voices = tuple(pattern for pattern in VOICES if listing.present(pattern))
    missing = [name for name in FILES if name not in listing.names] + ([] if voices else [VOICES[0]])
    if missing:
        return [Match("phonon", refusal=f"Phonon: no {', '.join(missing)}")]
    return [Match("phonon", (*FILES, *voices), ("--model", "{repo}"))]
