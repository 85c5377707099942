"""Recognition of Kyutai TTS releases, with the named voices that they need."""

from collections.abc import Mapping
from dataclasses import replace

from stretto.family.recognition import CONFIG, Listing, Match, Needed
from stretto_kyutai.kyutai_stt.recognise import MIMI, TOKENIZER, match_of_named_files

VOICES = "voices"
REPOSITORY = "kyutai/tts-voices"
FREE_VOICES = "voice-donations"  # folder of the repository whose voices are in the public domain
RECORDINGS = f"{VOICES}/*.wav"


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    config = listing.json(CONFIG)
    if config.get("model_type") != "tts" or not config.get("dep_q") or not {MIMI, TOKENIZER} <= config.keys():
        return []
    match = match_of_named_files("kyutai_tts", listing, config)
    if match.refusal:
        return [match]
    if not config.get("conditioners"):
        recordings = listing.present(RECORDINGS)
        return [replace(match, files=(*match.files, *recordings), needs=() if recordings else ("recording",))]
    model_id = config.get("model_id")
    if not isinstance(model_id, Mapping) or not {"sig", "epoch"} <= model_id.keys():
        return [replace(match, refusal="config.json: model_id: expected sig and epoch")]
    suffix = f".{model_id['sig']}@{model_id['epoch']}.safetensors"
    pattern = f"{VOICES}/*{suffix}"
    if listing.present(pattern):
        return [replace(match, files=(*match.files, pattern))]
    words = tuple(word.replace("{repo}", "{view}") for word in match.convert)
    voices = Needed(REPOSITORY, (f"{FREE_VOICES}/*{suffix}",), to=VOICES)
    return [replace(match, convert=words, companions=(voices,))]
