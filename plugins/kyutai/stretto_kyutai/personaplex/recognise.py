"""Recognition of PersonaPlex releases."""

from stretto.family.recognition import CONFIG, Listing, Match
from stretto_kyutai.kyutai_stt.recognise import match_of_named_files
from stretto_kyutai.moshi.recognise import FIRST, VOICES


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    if VOICES not in listing.names:
        return []
    return [match_of_named_files("personaplex", listing, {**FIRST, **listing.json(CONFIG)}, VOICES)]
