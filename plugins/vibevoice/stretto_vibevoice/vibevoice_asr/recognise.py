"""Recognition of VibeVoice-ASR releases, in the layout of transformers or in the authors'."""

from stretto.family.recognition import CONFIG, QWEN_TOKENIZER, Listing, Match, Needed, OneRelease
from stretto_vibevoice.vibevoice.recognise import is_authors_asr

TRANSFORMERS = OneRelease("vibevoice_asr", "VibeVoice-ASR", "vibevoice_asr")
AUTHORS = OneRelease(
    "vibevoice_asr",
    "VibeVoice-ASR",
    "vibevoice",
    optional=(),
    convert=("--model", "{repo}", "--config", f"{{repo}}/{CONFIG}", "--tokenizer", "{companion1}"),
    companions=(Needed("Qwen/Qwen2.5-7B", QWEN_TOKENIZER),),
)


def recognise(listing: Listing) -> list[Match]:
    """Return the release in a listing, if there is one."""
    return AUTHORS(listing) if is_authors_asr(listing) else TRANSFORMERS(listing)
