"""Recognises MOSS-TTS releases with the delay pattern, and refuses those of the other architectures by name."""

from collections.abc import Mapping
from typing import Any

from stretto.family.recognition import CONFIG, TOKENIZER, Listing, Match, Needed

MODEL_TYPE = "moss_tts_delay"
CODEC = Needed("OpenMOSS-Team/MOSS-Audio-Tokenizer", ("config.json", "*.safetensors", "*.safetensors.index.json"))
CONVERT = ("--model", "{repo}", "--config", f"{{repo}}/{CONFIG}", "--tokenizer", "{repo}", "--codec", "{companion1}")
OTHERS = {
    "moss_tts_nano": "MOSS-TTS-Nano",
}


def refusal_of(config: Mapping[str, Any]) -> str:
    """Return the reason why a model of OpenMOSS with this config.json is not supported; empty for other models."""
    model_type = str(config.get("model_type"))
    name = OTHERS.get(model_type)
    if model_type == MODEL_TYPE and "local_num_layers" in config:  # its first version has the same model_type
        name = "MOSS-TTS-Local-Transformer 1.0"
    return f"{name} is not supported, only MOSS-TTS v1.5, MOSS-TTS-Local v1.5 and MOSS-TTS-Realtime" if name else ""


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    config = listing.json(CONFIG)
    if refusal := refusal_of(config):
        return [Match("moss_tts", refusal=refusal)]
    if config.get("model_type") != MODEL_TYPE:
        return []
    return matches(listing, "moss_tts", "MOSS-TTS")


def matches(listing: Listing, family: str, title: str, codec: Needed = CODEC) -> list[Match]:
    """Return the release of a family that uses a MOSS-Audio-Tokenizer, or why it is refused.

    Args:
        listing: Files of the release.
        family: Name of the family.
        title: Name of the model, for error messages.
        codec: Repository of the codec.
    """
    weights = listing.weights()
    if not weights:
        return [Match(family, refusal=f"{title}: expected model.safetensors, or the files of its index")]
    return [Match(family, (*weights, CONFIG, *listing.present(*TOKENIZER)), CONVERT, companions=(codec,))]
