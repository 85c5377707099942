"""Recognises Higgs Audio v3 releases: a repository is one release."""

from stretto.family.recognition import CONFIG, QWEN_TOKENIZER, Listing, Match

CONVERT = ("--model", "{repo}", "--config", f"{{repo}}/{CONFIG}", "--tokenizer", "{repo}")


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    config = listing.json(CONFIG)
    if config.get("model_type") != "higgs_multimodal_qwen3":
        return []
    audio = config.get("audio_encoder_config")
    encoder_type = audio.get("encoder_type", "discrete") if isinstance(audio, dict) else None
    if encoder_type != "discrete":
        return [
            Match("higgs_audio_v3", refusal=f"Higgs Audio v3 for speech has discrete audio codes, got {encoder_type!r}")
        ]
    weights = listing.weights()
    tokenizer = listing.present(*QWEN_TOKENIZER)
    if not weights or "tokenizer.json" not in tokenizer:
        return [Match("higgs_audio_v3", refusal="Higgs Audio v3: no model.safetensors or no tokenizer.json")]
    return [Match("higgs_audio_v3", (CONFIG, *weights, *tokenizer), CONVERT)]
