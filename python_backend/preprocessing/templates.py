"""Templates by the name of their family."""

from pathlib import Path

from python_backend.codec.base import Codec
from python_backend.families.base import Family
from python_backend.families.hearing import AudioFormat
from python_backend.families.registry import config_at
from python_backend.families.tokenizer import TextTokenizer
from python_backend.preprocessing.dialogue_template import DialogueTemplate
from python_backend.preprocessing.opuslm_segments import SegmentWriter
from python_backend.preprocessing.opuslm_template import OpusTemplate
from python_backend.preprocessing.prompt import OpenTemplate, Template
from python_backend.preprocessing.ssl_tokenizer import load_ssl_tokenizer
from python_backend.preprocessing.subwords import Subwords
from python_backend.preprocessing.tiny_template import TinyTemplate


def _bagpiper(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    # Imported here, as it brings transformers, which takes seconds and no other family needs.
    from python_backend.preprocessing.bagpiper_template import BagpiperTemplate

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
