"""Recognises PersonaPlex releases."""

from stretto.families.kyutai_stt.recognise import match_of_named_files
from stretto.families.moshi.recognise import FIRST, VOICES
from stretto.family.recognition import CONFIG, Listing, Match


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    if VOICES not in listing.names:
        return []
    return [match_of_named_files("personaplex", listing, {**FIRST, **listing.json(CONFIG)}, VOICES)]
