"""Orpheus prompts, which have the voice's name and the text between markers.

    [human][begin of text] tara: Hello [end of turn][end of human][AI][speech]

Emotions such as `<laugh>` are plain text. The authors' package decodes this prompt to a string, and its tokenizer then
adds a second `begin of text` in front. The model was trained with a single one.
"""

from pathlib import Path

from stretto.codecs.base import Codec
from stretto.errors import InvalidRequest
from stretto.family.base import Family, Task
from stretto.family.prompting import PLAIN, Manner, Piece, PromptRows, Template, stream0_rows
from stretto.family.text import Subwords, TextTokenizer

BEFORE = ("human", "begin_of_text")
BEHIND = ("end_of_turn", "end_of_human", "ai", "speech")


class OrpheusTemplate:
    """Prompt template for Orpheus."""

    def __init__(self, family: Family, subwords: Subwords):
        self._family = family
        self._subwords = subwords

    def write(self, task: Task, pieces: tuple[Piece, ...], voice: str | None, manner: Manner = PLAIN) -> PromptRows:
        """Return the prompt rows for the text to speak in the voice called `voice`."""
        text = pieces[-1].text
        markers = self._family.markers
        assert text is not None, "the task takes text alone"
        if not text.strip():
            raise InvalidRequest(pieces[-1].path, "text of at least one character other than a space", repr(text))
        spoken = self._subwords.ids(f"{voice}: {text}", pieces[-1].path)
        ids = [*(markers[name] for name in BEFORE), *spoken, *(markers[name] for name in BEHIND)]
        return PromptRows(stream0_rows(self._family.layout, ids))


def open_template(family: Family, checkpoint: Path, codec: Codec, device: str) -> Template:
    """Return the template with a checkpoint's tokenizer."""
    return OrpheusTemplate(family, Subwords(TextTokenizer.at(checkpoint), family))
