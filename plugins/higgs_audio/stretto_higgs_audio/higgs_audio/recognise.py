"""Recognises Higgs Audio v2 releases in transformers format."""

from stretto.family.recognition import CONFIG, SINGLE, TOKENIZER, Listing, Match, Needed

CODEC = Needed("bosonai/higgs-audio-v2-tokenizer", ("*.json", "model.pth"))
CONVERT = ("--model", "{repo}", "--config", f"{{repo}}/{CONFIG}", "--tokenizer", "{repo}", "--codec", "{companion1}")


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    model_type = listing.json(CONFIG).get("model_type")
    if model_type not in ("higgs_audio_v2", "higgs_audio"):
        return []
    if model_type == "higgs_audio" or SINGLE not in listing.names:
        refusal = "Higgs Audio is read only in transformers format: model_type higgs_audio_v2 and model.safetensors"
        return [Match("higgs_audio_v2", refusal=refusal)]
    files = (SINGLE, CONFIG, *listing.present("generation_config.json", *TOKENIZER))
    return [Match("higgs_audio_v2", files, CONVERT, companions=(CODEC,))]
