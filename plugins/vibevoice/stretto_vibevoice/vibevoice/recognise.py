"""Recognition of VibeVoice 1.5B and 7B releases."""

from stretto.family.recognition import CONFIG, QWEN_TOKENIZER, TOKENIZER, Listing, Match, Needed

AUTHORS = "acoustic_tokenizer_config"  # key in a config.json in the authors' format, whose folder has no tokenizer
AUTHORS_TOKENIZER = Needed("Qwen/Qwen2.5-1.5B", QWEN_TOKENIZER)
ASR = ["VibeVoiceForASRTraining"]  # `architectures` of VibeVoice-ASR in the authors' format


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    config = listing.json(CONFIG)
    weights = listing.weights()
    model_type = config.get("model_type")
    if model_type != "vibevoice" or is_authors_asr(listing):
        return []
    if not weights:
        refusal = "expected model.safetensors, or the files of model.safetensors.index.json"
        return [Match("vibevoice", refusal=refusal)]
    has_tokenizer = AUTHORS not in config
    tokenizer = "{repo}" if has_tokenizer else "{companion1}"
    return [
        Match(
            "vibevoice",
            (*weights, CONFIG, *listing.present("generation_config.json", *(TOKENIZER if has_tokenizer else ()))),
            ("--model", "{repo}", "--config", f"{{repo}}/{CONFIG}", "--tokenizer", tokenizer),
            companions=() if has_tokenizer else (AUTHORS_TOKENIZER,),
        )
    ]


def is_authors_asr(listing: Listing) -> bool:
    """Return True for VibeVoice-ASR in the authors' format, which has the `model_type` of VibeVoice."""
    return listing.json(CONFIG).get("architectures") == ASR
