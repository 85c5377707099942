"""Recognises MOSS-TTS-Local-Transformer v1.5 releases."""

from stretto.family.recognition import CONFIG, Listing, Match, Needed
from stretto_moss.moss_tts.recognise import matches

MODEL_TYPE = "moss_tts_local"
CODEC = Needed("OpenMOSS-Team/MOSS-Audio-Tokenizer-v2", ("config.json", "*.safetensors", "*.safetensors.index.json"))


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    if listing.json(CONFIG).get("model_type") != MODEL_TYPE:
        return []
    return matches(listing, MODEL_TYPE, "MOSS-TTS-Local", CODEC)
