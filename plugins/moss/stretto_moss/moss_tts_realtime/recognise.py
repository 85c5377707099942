"""Recognises MOSS-TTS-Realtime releases."""

from stretto.family.recognition import CONFIG, Listing, Match
from stretto_moss.moss_tts.recognise import matches

MODEL_TYPE = "moss_tts_realtime"


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    if listing.json(CONFIG).get("model_type") != MODEL_TYPE:
        return []
    return matches(listing, MODEL_TYPE, "MOSS-TTS-Realtime")
