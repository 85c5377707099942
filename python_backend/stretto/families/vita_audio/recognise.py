"""Recognition of VITA-Audio releases from their lists of files."""

from stretto.family.recognition import CONFIG, MAX_TOKENIZER_BYTES, TOKENIZER, Listing, Match, Needed

# values of `model_type`
PLAIN = "qwen2"
MODULES = "qwen2_mtp"
PLUS = "qwen2_mtp_sensevoice"
FIRST_CODE = "<|audio_0|>"
CODEC = Needed("THUDM/glm-4-voice-decoder", ("config.yaml", "flow.pt", "hift.pt"))
INPUT = Needed("THUDM/glm-4-voice-tokenizer", ("config.json", "preprocessor_config.json", "model*.safetensors"))
ENCODER_FILES = ("config.yaml", "am.mvn")  # audio encoder inside VITA-Audio-Plus
ENCODER = Needed("FunAudioLLM/SenseVoiceSmall", ENCODER_FILES, to=".")


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    model_type = listing.json(CONFIG).get("model_type")
    weights = listing.weights()
    if model_type not in (PLAIN, MODULES, PLUS) or (model_type == PLAIN and not has_codes(listing)):
        return []
    if not weights:
        refusal = "expected model.safetensors, or the files of model.safetensors.index.json"
        return [Match("vita_audio", refusal=refusal)]
    has_encoder = {*ENCODER_FILES} <= listing.names
    folder = "{repo}"
    companions = [CODEC]
    if model_type != PLUS:
        companions.append(INPUT)
    elif not has_encoder:
        folder = "{view}"
        companions = [CODEC, ENCODER]
    words = ("--model", folder, "--config", f"{folder}/{CONFIG}", "--tokenizer", folder, "--codec", "{companion1}")
    optional = ("generation_config.json", *TOKENIZER, *(ENCODER_FILES if model_type == PLUS else ()))
    return [
        Match(
            "vita_audio",
            (*weights, CONFIG, *listing.present(*optional)),
            words if model_type == PLUS else (*words, "--ssl-tokenizer", "{companion2}"),
            companions=tuple(companions),
        )
    ]


def has_codes(listing: Listing) -> bool:
    """Return True if the tokenizer has tokens for codes, which other models of the same kind lack."""
    names = ("added_tokens.json", "tokenizer_config.json", "tokenizer.json")
    return any(FIRST_CODE in (listing.text(name, MAX_TOKENIZER_BYTES) or "") for name in names)
