"""Texts of books: their chapters, and the sections that are spoken one after the other."""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

from stretto_client.long_speech import pieces_with_pauses
from stretto_client.tags import VOICE_MARK, marked_voices
from stretto_contract.sentence_ends import is_spoken

SECTION_CHARS = 600  # about 40 s of speech, which are lost if other requests interrupt a section
TITLE_CHARS = 80
STEP_BLOCKS = 100  # paragraphs that are read before an empty section is yielded
CHAPTER_PAUSE_S = 2.0
HEADING_PAUSE_S = 1.0
# While a text is divided, these silent letters replace each mark at equal length, so that it is never split.
MARK_BEGIN = "\u3164"
MARK_REST = "\u115f"
BLOCK_END = re.compile(r"\f|\n[ \t]*\n")
MARKDOWN_HEADING = re.compile(r"#{1,3}[ \t]+(?P<title>\S.*?)[ \t#]*")
PLAIN_HEADING = re.compile(
    r"(?:chapter|part|book)[ \t]+\w.*|prologue|epilogue|preface|foreword|introduction|afterword", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Section:
    """Text that is spoken by one request.

    Attributes:
        text: The text; empty for a step without speech, so that the caller can pause.
        title: Title of the chapter that begins with this section; None in the middle of a chapter.
    """

    text: str
    pause_s: float
    title: str | None = None


EMPTY = Section("", 0.0)


def sections_of(text: str, tags: Collection[str] | None = None, has_voices: bool = True) -> Iterator[Section]:
    """Yield the sections of a text, whose chapters begin with headings.

    Text before the first heading is a chapter without a title. Headings are lines between blank lines, such as
    `# Title`, `Chapter 1` and `Prologue`. They are spoken. A mark of a voice applies up to the next heading.

    Args:
        has_voices: False if the text has no marks of voices, because its markup is `none`.
    """
    paragraphs = list[str]()
    title: str | None = ""
    is_first = True
    for number, block in enumerate(chain(blocks_of(text), [None]), 1):
        heading = None if block is None else heading_of(block)
        if block is not None and heading is None:
            paragraphs += [block] if block else []
            if number % STEP_BLOCKS == 0:
                yield EMPTY
            continue
        sections = _paragraph_sections("\n\n".join(paragraphs), title, is_first)
        for section in _with_voices(sections, tags) if has_voices else sections:
            yield section
            if section.text:
                title = None
                is_first = False
        paragraphs = []
        if heading is not None:
            yield Section(heading, 0.0 if is_first else CHAPTER_PAUSE_S, heading)
            title = None
            is_first = False


def blocks_of(text: str) -> Iterator[str]:
    """Yield the paragraphs of a text; some may be empty."""
    begin = 0
    for end in BLOCK_END.finditer(text):
        yield text[begin : end.start()].strip()
        begin = end.end()
    yield text[begin:].strip()


def heading_of(block: str) -> str | None:
    """Return the title if a paragraph is a heading; None otherwise."""
    if len(block) > TITLE_CHARS + len("### ") or "\n" in block:
        return None
    if markdown := MARKDOWN_HEADING.fullmatch(block):
        return markdown["title"]
    is_sentence = block.endswith((".", ",", ";", ":")) and len(block.split()) > 3
    return block if PLAIN_HEADING.fullmatch(block) and not is_sentence else None


def _paragraph_sections(text: str, title: str | None, is_first: bool) -> Iterator[Section]:
    """Yield the sections of the paragraphs after a heading, or of those before the first heading.

    `title` is the title of the chapter that they begin; None after a heading.
    """
    pause_s = 0.0 if is_first else HEADING_PAUSE_S
    text = text.replace(MARK_BEGIN, " ").replace(MARK_REST, " ")
    marks = VOICE_MARK.finditer(text)
    unmarked = VOICE_MARK.sub(lambda mark: MARK_BEGIN.ljust(len(mark.group()), MARK_REST), text)
    for piece in pieces_with_pauses(unmarked, SECTION_CHARS):
        if isinstance(piece, float):
            pause_s = piece
        elif marked := re.sub(MARK_BEGIN, lambda _: next(marks).group(), str(piece).replace(MARK_REST, "")):
            yield Section(marked, pause_s, title)
            title = None
            pause_s = 0.0


def _with_voices(sections: Iterable[Section], tags: Collection[str] | None) -> Iterator[Section]:
    """Yield the sections, each beginning with a mark of the voice in which the previous section has ended.

    A section that has only marks becomes empty; its pause and title move to the next section.
    """
    voice: str | None = None
    bare: Section | None = None  # pending section without text
    for section in sections:
        mark = "" if voice is None else f"[voice:{voice}]"
        voice = [voice, *marked_voices(section.text, tags)][-1]
        if not is_spoken(VOICE_MARK.sub("", section.text)):
            bare = bare or section
            yield EMPTY
            continue
        first = bare or section
        yield Section(mark + section.text, first.pause_s, first.title)
        bare = None


def voice_names(sections: Iterable[Section], tags: Collection[str]) -> list[str]:
    """Return the names in the marks of voices in sections, without duplicates."""
    return list(dict.fromkeys(name for section in sections for name in marked_voices(section.text, tags) if name))
