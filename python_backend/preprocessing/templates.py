"""Templates by the name of their family."""

from pathlib import Path

from python_backend.codec.base import Codec
from python_backend.families.base import Family
from python_backend.families.tokenizer import TextTokenizer
from python_backend.preprocessing.bagpiper_template import BagpiperTemplate
from python_backend.preprocessing.dialogue_template import DialogueTemplate
from python_backend.preprocessing.opuslm_segments import SegmentWriter
from python_backend.preprocessing.opuslm_template import OpusTemplate
from python_backend.preprocessing.prompt import OpenTemplate, Template
from python_backend.preprocessing.ssl_tokenizer import load_ssl_tokenizer
from python_backend.preprocessing.subwords import Subwords
from python_backend.preprocessing.tiny_template import TinyTemplate


def _bagpiper(family: Family, checkpoint: Path, codec: Codec) -> Template:
    return BagpiperTemplate(family, Subwords(TextTokenizer.at(checkpoint), family))


def _segments(family: Family, checkpoint: Path, codec: Codec) -> SegmentWriter:
    subwords = Subwords(TextTokenizer.at(checkpoint), family)
    return SegmentWriter(family, subwords, codec, load_ssl_tokenizer(checkpoint))


TEMPLATES: dict[str, OpenTemplate] = {
    "tiny": lambda family, checkpoint, codec: TinyTemplate(codec),
    "bagpiper": _bagpiper,
    "opuslm": lambda family, checkpoint, codec: OpusTemplate(_segments(family, checkpoint, codec)),
    "opuslm_dialogue": lambda family, checkpoint, codec: DialogueTemplate(_segments(family, checkpoint, codec)),
}
