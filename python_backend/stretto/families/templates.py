"""Templates by the name of their family."""

from pathlib import Path

from stretto.codec.base import Codec
from stretto.families.audio_format import AudioFormat
from stretto.families.base import Family
from stretto.families.opuslm.dialogue_prompt import DialogueTemplate
from stretto.families.opuslm.prompt import OpusTemplate
from stretto.families.opuslm.prompt_segments import SegmentWriter
from stretto.families.opuslm.ssl_tokenizer import load_ssl_tokenizer
from stretto.families.registry import config_at
from stretto.families.tiny.prompt import TinyTemplate
from stretto.families.tokenizer import TextTokenizer
from stretto.preprocessing.prompt import OpenTemplate, Template
from stretto.preprocessing.subwords import Subwords


def _bagpiper(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    # Imported here, as it brings transformers, which takes seconds and no other family needs.
    from stretto.families.bagpiper.prompt import BagpiperTemplate

    subwords = Subwords(TextTokenizer.at(checkpoint), family)
    return BagpiperTemplate(family, subwords, AudioFormat.from_config(config_at(checkpoint)))


def _segments(family: Family, checkpoint: Path, codec: Codec, device: str) -> SegmentWriter:
    subwords = Subwords(TextTokenizer.at(checkpoint), family)
    ssl = load_ssl_tokenizer(checkpoint, len(family.layout.audio[0]), device)
    return SegmentWriter(family, subwords, codec, ssl)


TEMPLATES: dict[str, OpenTemplate] = {
    "tiny": lambda family, checkpoint, codec, device: TinyTemplate(codec),
    "bagpiper": _bagpiper,
    "opuslm": lambda *opened: OpusTemplate(_segments(*opened)),
    "opuslm_dialogue": lambda *opened: DialogueTemplate(_segments(*opened)),
}
