"""MOSS-TTS-Nano prompts: MOSS-TTS-Local prompts with other ids, and unchanged recordings."""

from pathlib import Path

from stretto.codecs.base import Codec
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at
from stretto.family.prompting import Template
from stretto.family.text import SENTENCEPIECE_FILE, sentencepiece_at
from stretto_moss.moss_tts_local.prompt import LocalTemplate
from stretto_moss.moss_tts_nano.family import NanoVocabulary


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template that uses the checkpoint's tokenizer and codec."""
    vocabulary = NanoVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    tokenizer = sentencepiece_at(checkpoint / SENTENCEPIECE_FILE)
    return LocalTemplate(family, vocabulary, tokenizer, codec.encode)
