"""Recognition of Qwen3-TTS releases at 12.5 frames per second from their lists of files."""

from stretto.family.recognition import CONFIG, TOKENIZER, Listing, Match, Needed, unexpected

CODEC = "speech_tokenizer"
CODEC_TYPE = "qwen3_tts_tokenizer_12hz"
CODEC_REPOSITORY = Needed("Qwen/Qwen3-TTS-Tokenizer-12Hz", ("*.json", "model.safetensors"))
NEEDS = {"custom_voice": (), "voice_design": ("instruct",), "base": ("recording",)}  # by `tts_model_type`


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    config = listing.json(CONFIG)
    if config.get("model_type") != "qwen3_tts":
        return []
    model_type = config.get("tts_model_type")
    codec = config.get("tokenizer_type")
    weights = listing.weights()
    for refused, refusal in (
        (codec != CODEC_TYPE, unexpected("tokenizer_type", CODEC_TYPE, codec)),
        (str(model_type) not in NEEDS, unexpected("tts_model_type", ", ".join(NEEDS), model_type)),
        (not weights, "expected model.safetensors, or the files of model.safetensors.index.json"),
    ):
        if refused:
            return [Match("qwen3_tts", refusal=refusal)]
    has_codec = f"{CODEC}/model.safetensors" in listing.names
    words = ("--model", "{repo}", "--config", "{repo}/config.json", "--tokenizer", "{repo}", "--codec")
    return [
        Match(
            "qwen3_tts",
            (*weights, CONFIG, *listing.present("generation_config.json", *TOKENIZER, f"{CODEC}/*")),
            (*words, f"{{repo}}/{CODEC}" if has_codec else "{companion1}"),
            companions=() if has_codec else (CODEC_REPOSITORY,),
            needs=NEEDS[str(model_type)],
        )
    ]
