"""Recognition of VibeVoice Realtime releases."""

from stretto.family.recognition import CONFIG, QWEN_TOKENIZER, TOKENIZER, Listing, Match, Needed

KIND = "vibevoice_streaming"
VOICES = ("voices/*.pt", "voices/*.safetensors")
# The authors publish weights here, voices in their code, and no tokenizer. Another repository has their voices.
VOICES_ELSEWHERE = Needed("mnmly/VibeVoice-Realtime-0.5B-mlx", ("voices/*.safetensors",), to=".")
TOKENIZER_ELSEWHERE = Needed("Qwen/Qwen2.5-0.5B", QWEN_TOKENIZER, to=".")


def recognise(listing: Listing) -> list[Match]:
    """Return a match for the release in a listing."""
    config = listing.json(CONFIG)
    if config.get("model_type") != KIND:
        return []
    weights = listing.weights()
    voices = listing.present(*VOICES)
    tokenizer = listing.present(*TOKENIZER)
    if not weights:
        expected = "expected model.safetensors, or the files of model.safetensors.index.json"
        return [Match("vibevoice_realtime", refusal=f"VibeVoice Realtime: {expected}")]
    missing = (() if voices else (VOICES_ELSEWHERE,), () if tokenizer else (TOKENIZER_ELSEWHERE,))
    companions = missing[0] + missing[1]
    folder = "{view}" if companions else "{repo}"
    files = (*weights, CONFIG, *voices, *tokenizer)
    return [Match("vibevoice_realtime", files, ("--model", folder), companions=companions)]
