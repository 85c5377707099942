"""Conversion of Markdown and SSML to the text to speak, for complete and streamed text."""

import asyncio
import re
from collections import Counter, deque
from collections.abc import AsyncIterable, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NoReturn, Protocol, get_args
from xml.parsers import expat

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from stretto_client.errors import RequestRefused

Markup = Literal["auto", "none", "markdown", "ssml"]
MARKUPS: tuple[str, ...] = get_args(Markup)
PAUSE = "\x1c"  # represents a pause in a reader's output; its duration is the next value in the reader's `pauses`
MAX_PAUSE_S, MAX_PAUSES_S = 10.0, 60.0  # limits on one SSML break, and on all breaks in a text
MAX_DEPTH = 32  # maximum nesting of SSML elements
MAX_HELD_CHARS = 1000  # maximum length of an unclosed emphasis, link or table row; in longer ones, marks are text
MAX_MARKS = 60  # maximum number of marks in such an unclosed run, to limit parsing time
SHORT_CHARS, SLICE_CHARS = 100, 1000  # maximum on the event loop (6 ms), and per slice in the thread (60 ms)
READING = ThreadPoolExecutor(1, "markup")  # for longer texts, one slice at a time: 100,000 characters may take 3 s

EMOJI = (
    "\U0001f000-\U0001faff\u2600-\u27bf\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u231a\u231b\u23e9-\u23fa"
    "\ufe0f\u20e3\U000e0020-\U000e007f"
)
EMOJIS = re.compile(rf" ?[{EMOJI}](?:\u200d?[{EMOJI}])*\u200d?")
HAS_MARKS = re.compile(rf"[*_`~<&\\#|\[{EMOJI}]|^[ \t]*(?:[-+>=]|\d{{1,3}}[.)]\s)", re.MULTILINE)
CLOSING = ")\"'”’»"  # characters that may follow the punctuation at the end of a sentence


class MarkupReader(Protocol):
    """Incremental converter of text with markup. The result does not depend on how the text is split into pieces."""

    pauses: deque[float]  # duration in seconds of each PAUSE that was returned, in order

    def add(self, piece: str) -> str:
        """Add a piece of text; return the text that is ready to be spoken."""

    def end(self) -> str:
        """End the text; return the rest of the text to speak."""


def open_reader(markup: Markup) -> MarkupReader:
    """Create a reader of `markup`, which must not be `none`."""
    return MarkdownReader() if markup == "markdown" else SsmlReader() if markup == "ssml" else AutoReader()


def has_marks(text: str) -> bool:
    """Return True if `text` may contain markup."""
    return HAS_MARKS.search(text) is not None


async def read_text(text: str, markup: Markup) -> list[str | float]:
    """Return the parts of the text to speak and, between them, the silence in seconds.

    Raises:
        RequestRefused: SSML is not well-formed, or there is nothing to speak.
    """
    reader = open_reader(markup)
    spoken = "".join([part async for part in read_slices(text, reader)]) + reader.end()
    parts = list[str | float]()
    for part in re.split(f"({PAUSE})", spoken):
        if part == PAUSE and reader.pauses:
            parts.append(reader.pauses.popleft())
        elif is_spoken(part):
            parts.append(part.strip())
    if not any(isinstance(part, str) for part in parts):
        raise RequestRefused("text: expected text to speak, got only markup")
    return parts


async def read_slices(piece: str, reader: MarkupReader) -> AsyncIterator[str]:
    """Yield the text to speak for `piece`, converted in slices so as not to block the event loop."""
    if len(piece) <= SHORT_CHARS:
        yield reader.add(piece)
        return
    for begin in range(0, len(piece), SLICE_CHARS):
        part = piece[begin : begin + SLICE_CHARS]
        yield await asyncio.get_running_loop().run_in_executor(READING, reader.add, part)


def is_spoken(text: str) -> bool:
    """Return True if `text` contains a letter or a digit."""
    return any(map(str.isalnum, text))


async def read_pieces(pieces: AsyncIterable[str], reader: MarkupReader) -> AsyncIterator[str]:
    """Yield the text to speak for `pieces` as it is parsed; see `read_text` for exceptions."""
    try:
        async for piece in pieces:
            async for text in read_slices(piece, reader):
                if text:
                    yield text
        if text := reader.end():
            yield text
    finally:
        if close := getattr(pieces, "aclose", None):
            await close()


async def without_pauses(pieces: AsyncIterable[str]) -> AsyncIterator[str]:
    """Yield `pieces` with each PAUSE replaced by the end of a sentence."""
    last = ""
    async for piece in pieces:
        text = ""
        for part in re.split(f"({PAUSE})", piece):
            text += full_stop(last) + " " if part == PAUSE else part
            last = last_sign(text) or last
        yield text


def last_sign(text: str) -> str:
    """Return the last character of `text` except spaces, closing quotes and brackets; empty if none."""
    return text.rstrip().rstrip(CLOSING)[-1:]


def full_stop(last: str) -> str:
    """Return the punctuation to add after a text that ends with `last`; empty if it ends a sentence."""
    if not (last.isalnum() or last in ("%", "°", "€", "$", "£")):
        return ""
    return "。" if "\u3040" <= last <= "\u9fff" else "."


def without_emoji(text: str) -> str:
    """Return `text` without emoji and without the space before each emoji."""
    return EMOJIS.sub("", text)


class AutoReader:
    """Reader that treats text as SSML if it begins with the root element `<speak`, otherwise as Markdown."""

    ROOT = re.compile(r"\s*(?:<\?xml\s|<speak[\s>/])")
    STARTS = ("<?xml ", "<speak>")

    def __init__(self) -> None:
        self._head = ""
        self._reader: MarkupReader | None = None
        self.pauses = deque[float]()

    def add(self, piece: str) -> str:
        """Add a piece of text; return the text that is ready to be spoken."""
        if self._reader is not None:
            return self._reader.add(piece)
        self._head = (self._head + piece).lstrip("\ufeff")
        start = self._head.lstrip()
        if any(known.startswith(start) and known != start for known in self.STARTS):
            return ""
        return self._choose().add(self._head)

    def end(self) -> str:
        """End the text; return the rest of the text to speak."""
        if self._reader is not None:
            return self._reader.end()
        reader = self._choose()
        return reader.add(self._head) + reader.end()

    def _choose(self) -> MarkupReader:
        self._reader = SsmlReader() if self.ROOT.match(self._head) else MarkdownReader()
        self.pauses = self._reader.pauses
        return self._reader


# --- Markdown ---------------------------------------------------------------------------------------------------------

INLINE = MarkdownIt("commonmark", {"html": True, "maxNesting": 20}).enable("strikethrough")
FORMATTING = re.compile(  # HTML used in Markdown; other tags, such as <laugh>, may have a meaning for a model
    r"<!--.*|</?(?:a|abbr|b|big|br|center|cite|code|del|details|div|em|font|h[1-6]|hr|i|img|ins|kbd|li|mark|ol|p|pre|q|s|samp"
    r"|small|span|strike|strong|sub|summary|sup|table|tbody|td|th|thead|tr|tt|u|ul|var)"
    r"(?:\s+[\w-]+=(?:\"[^\"]*\"|'[^']*'))*\s*/?>",
    re.IGNORECASE | re.DOTALL,
)
WIDE = "\u0e00-\u0eff\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\uff00-\uffef"  # scripts without spaces between words
ATOM = re.compile(rf"[ \t]|[^ \t{WIDE}]{{0,{MAX_HELD_CHARS - 1}}}[^ \t]")
END_OF_ATOM = re.compile(rf"[{WIDE} \t]")
MARK = re.compile(rf"[*_`~<&\\\[{EMOJI}]|://")
COUNTED_MARKS = re.compile(r"[*_`~<&\\\[!]")
OPENERS = re.compile(r"(?<![\w*_~])(?:[*_]{1,3}|~~)(?=[^\s*_~])")
CLOSERS = re.compile(r"(?<=[^\s*_~])(?:[*_]{1,3}|~~)(?![0-9A-Za-z*_~])")
BETWEEN = re.compile(r"(?<=[0-9A-Za-z)])\*+(?=[0-9A-Za-z(])")  # not emphasis, as in 2*3
STAR = "\ufdd0"  # replaces such a star during parsing (a Unicode noncharacter)
URL_REST = re.compile(r"://[\w./?=&%#+~:@!$',;-]+")
FOOTNOTE = re.compile(r"\[\^[\w-]{1,40}\]:?")
DANGLING = re.compile(r"(?<=\S)\*\*|\*\*(?=\S)")

UNDECIDED = re.compile(r"[\s>\-*+_=#|:`~.()\[\]xX^\d]*")  # a line whose beginning does not yet determine its kind
PREFIX = re.compile(r"[ \t]*(?:(?P<quote>>)[ \t]?|(?P<item>[-*+])(?:[ \t]+|$)(?:\[[ xX]\][ \t]+)?)")
NUMBERED = re.compile(r"[ \t]*\d{1,3}[.)][ \t]")
RULE = re.compile(r"[ \t]*(?:(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,}|={3,}[ \t]*)")
DELIMITER_ROW = re.compile(r"[ \t]*(?=[^-]*-)(?=[^|]*\|)[-|: \t]+")
HEADING = re.compile(r"[ \t]{0,3}#{1,6}(?:[ \t]+(?P<title>.*?))??(?:[ \t]+#+)?[ \t]*", re.DOTALL)
FENCE = re.compile(r"[ \t]*(?P<mark>`{3,}|~{3,})[^`]*")
ROW = re.compile(r"[ \t]*\|(?P<cells>.*)\|[ \t]*", re.DOTALL)
DEFINITION = re.compile(r"[ \t]{0,3}\[[^\]]+\]:[ \t]*(?:https?://|www\.|mailto:|[/#<])\S*.*", re.DOTALL)
WHOLE_LINE = re.compile(r"[ \t]*(?:\||```|~~~|#{1,6}[ \t]|\[[^\]]*$|\[[^\]]*\](?:$|:))")


def _url(state: StateInline, silent: bool) -> bool:
    """Parse a bare URL as text, so that its underscores are not emphasis (a rule of markdown-it)."""
    found = URL_REST.match(state.src, state.pos) if state.pending.endswith(("http", "https")) else None
    if found is None:
        return False
    if not silent:
        state.pending += found.group()
    state.pos = found.end()
    return True


INLINE.inline.ruler.push("url", _url)


def read_inline(text: str) -> str:
    """Return the text of one line of inline Markdown without marks, emoji and formatting HTML tags."""
    if len(COUNTED_MARKS.findall(text)) > MAX_MARKS:
        return without_emoji(text)
    source = BETWEEN.sub(lambda stars: STAR * len(stars.group()), FOOTNOTE.sub("", text))
    plain = "".join(_text_of(token) for token in INLINE.parseInline(source)[0].children or ())
    return without_emoji(DANGLING.sub("", plain).replace(STAR, "*"))


def _text_of(token: Token) -> str:
    match token.type:
        case "text" | "code_inline":
            return token.content
        case "softbreak" | "hardbreak":
            return " "
        case "image":
            return "".join(map(_text_of, token.children or ()))
        case "html_inline" if FORMATTING.fullmatch(token.content):
            return " " if token.content.lower().startswith("<br") else ""
        case "html_inline":
            return token.content
    return ""


def is_open(text: str) -> bool:
    """Return True if inline Markdown has an unclosed mark that more text may close."""
    begin = text.rfind("<")
    return (
        text.count("[") > text.count("]")
        or text.rfind("](") > text.rfind(")")
        or (
            begin > text.rfind(">")
            and (text[begin + 1 : begin + 2].isalpha() or text[begin + 1 : begin + 2] in ("/", "!"))
        )
        or any(num % 2 for num in Counter(map(len, re.findall("`+", text))).values())
        or len(OPENERS.findall(text)) > len(CLOSERS.findall(text))
    )


class MarkdownReader:
    """Markdown reader that works line by line, and word by word within a line.

    Most words are therefore ready immediately. Blocks are recognised by the marks at the beginning of a line;
    markdown-it parses inline marks. Text without marks is unchanged. Headings, list items, quotes and table rows get a
    full stop unless they end with punctuation, so that the model pauses after them. If emphasis is not closed on its
    line, double marks are dropped and single ones are kept.
    """

    def __init__(self) -> None:
        self.pauses = deque[float]()
        self._line = ""  # unread part of the line
        self._run = ""  # words held back until an emphasis, a link or a tag ends
        self._num_marks = 0  # marks in the run
        self._in_text = False  # True after the marks at the beginning of the line
        self._fence = ""  # closing mark of the current code block
        self._block = ""  # "item" and "quote" end with a full stop; "" is a paragraph
        self._gap = ""  # space not returned yet, because more may follow
        self._is_gap_read = False  # True if a dropped emoji needs no second space after it
        self._last = ""  # last character returned, as in `last_sign`
        self._ready: list[str] = []

    def add(self, piece: str) -> str:
        """Add a piece of text; return the text that is ready to be spoken."""
        lines = piece.split("\n")
        for line in lines[:-1]:
            self._take(line, is_whole=True)
        self._take(lines[-1], is_whole=False)
        return self._returned()

    def end(self) -> str:
        """End the text; return the rest of the text to speak."""
        self._take("", is_whole=True)
        self._close()
        self._gap = self._gap.removesuffix("\n")  # added by `_take`
        self._ready.append(self._gap)
        return self._returned()

    def _returned(self) -> str:
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def _take(self, text: str, is_whole: bool) -> None:
        """Append text to the current line; `is_whole` is True if the line ends after it."""
        self._line += text
        if is_whole:
            self._line = self._line.removesuffix("\r")
        if not self._in_text and not self._begin(is_whole):
            return
        self._read_atoms(is_whole)
        if is_whole:
            self._widen("\n")
            self._in_text = False

    def _begin(self, is_whole: bool) -> bool:
        """Parse the marks at the beginning of the line; return False if more of the line is needed."""
        if self._fence:
            return is_whole and self._code(self._line)
        is_long = len(self._line) > MAX_HELD_CHARS  # decide without the rest of the line
        line = self._line[:MAX_HELD_CHARS]
        if not is_whole and not is_long and UNDECIDED.fullmatch(line):
            return False
        kinds, start = self._prefixes(line)
        rest = self._line[start:]
        if not is_whole and not is_long and WHOLE_LINE.match(rest):
            return False
        self._in_text = True
        if not rest.strip() and "item" not in kinds:
            self._close()
            if start:
                rest = ""
        elif (is_block := not is_long and self._whole_line(rest)) or kinds or NUMBERED.match(rest):
            kind = "item" if "item" in kinds or not kinds else "quote"
            if kind == "item" or self._block != kind:
                self._close()
            if is_block:
                self._read_block(rest)
                rest = ""
            else:
                self._block = kind
        elif self._block == "quote":
            self._close()
        self._line = rest
        return True

    def _prefixes(self, line: str) -> tuple[set[str], int]:
        """Return the kinds of quote and item marks at the beginning of a line, and their end."""
        kinds, start = set[str](), 0
        while not RULE.fullmatch(line, start) and (found := PREFIX.match(line, start)):
            kinds.add(str(found.lastgroup))
            start = found.end()
        return kinds, start

    def _whole_line(self, line: str) -> bool:
        kinds = (RULE, DELIMITER_ROW, HEADING, FENCE, ROW, DEFINITION)
        return any(kind.fullmatch(line) for kind in kinds)

    def _read_block(self, line: str) -> None:
        """Process a line that forms a block."""
        if RULE.fullmatch(line) or DELIMITER_ROW.fullmatch(line) or DEFINITION.fullmatch(line):
            self._stop()
        elif found := FENCE.fullmatch(line):
            self._fence = found["mark"]
        else:
            found = HEADING.fullmatch(line)
            if found is not None:
                self._put(self._inline(found["title"] or ""))
            elif found := ROW.fullmatch(line):
                cells = (self._inline(cell.strip()) for cell in re.split(r"(?<!\\)\|", found["cells"]))
                self._put(", ".join(cell for cell in cells if cell))
            self._stop()

    def _code(self, line: str) -> bool:
        """Process a line of a code block: drop it if it closes the block, or else output it unchanged."""
        mark = line.strip()
        if len(mark) >= len(self._fence) and set(mark) == set(self._fence):
            self._fence = ""
        else:
            self._put(line)
        self._line = ""
        self._in_text = True
        return True

    def _inline(self, text: str) -> str:
        return read_inline(text) if MARK.search(text) else text

    def _read_atoms(self, is_whole: bool) -> None:
        """Process the complete parts of the line: words, and characters of scripts without spaces."""
        pos = 0
        while pos < len(self._line):
            found = ATOM.match(self._line, pos)
            assert found is not None, self._line
            atom = found.group()
            is_ended = len(atom) == MAX_HELD_CHARS or END_OF_ATOM.match(atom[-1])
            if found.end() == len(self._line) and not is_whole and not is_ended:
                break  # the rest of it may follow
            pos = found.end()
            self._atom(atom)
        self._line = self._line[pos:]
        if is_whole:
            self._flush()

    def _atom(self, atom: str) -> None:
        if self._run:
            self._run += atom
        elif MARK.search(atom):
            self._run = atom
        elif atom.isspace():
            if not self._is_gap_read:
                self._widen(atom)
            return
        else:
            self._put(atom)
            return
        self._num_marks += len(COUNTED_MARKS.findall(atom))
        if len(self._run) > MAX_HELD_CHARS or self._num_marks > MAX_MARKS or not is_open(self._run):
            self._flush()

    def _widen(self, space: str) -> None:
        self._gap = (self._gap + space)[:MAX_HELD_CHARS]

    def _flush(self) -> None:
        run, self._run, self._num_marks = self._run, "", 0
        if not run:
            return
        text = read_inline(run)
        # the space before the emoji does not belong to the next word
        if EMOJIS.match(run) and text[:1] in (*".,;:!?", ""):
            self._is_gap_read = not text and bool(self._gap)
            self._gap = self._gap if self._is_gap_read else self._gap.rstrip(" ")
        self._put(text)

    def _put(self, text: str) -> None:
        """Append `text` to the output, after any pending space; if it is whitespace, make it pending."""
        if not text.strip():
            self._gap = self._gap or text
            return
        self._ready.append(self._gap + text)
        self._gap, self._last, self._is_gap_read = "", last_sign(text) or self._last, False

    def _close(self) -> None:
        """End the current block, with a full stop if it is an item or a quote."""
        if self._block:
            self._stop()
        self._block = ""

    def _stop(self) -> None:
        stop = full_stop(self._last)
        if stop:
            self._ready.append(stop)
            self._last = stop


# --- SSML -------------------------------------------------------------------------------------------------------------

STRENGTHS_S = {"none": 0.0, "x-weak": 0.25, "weak": 0.5, "medium": 0.75, "strong": 1.0, "x-strong": 1.25}
TIME = re.compile(r"\+?(\d{1,7}(?:\.\d{0,6})?|\.\d{1,6})(ms|s)")
SILENT = {"metadata", "meta", "lexicon", "desc"}  # names of elements whose text is not spoken
SENTENCES = {"p", "s"}
SPELLED = {"characters", "spell-out", "verbatim", "digits"}


class SsmlReader:
    """SSML reader based on the standard library's XML parser.

    Document types are rejected, so entities cannot expand.
    """

    def __init__(self) -> None:
        self.pauses = deque[float]()
        self._parser = parser = expat.ParserCreate()
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = self._add, self._doctype
        self._depth = self._silent = 0  # depth of elements; depth of the outermost element that is not spoken
        self._say_as: tuple[int, str, str] | None = None  # depth, interpret-as and format of the open say-as
        self._run = ""  # text not returned yet
        self._say_as_text = ""  # text of the open say-as
        self._last = ""  # sign that was returned
        self._pauses_s = 0.0  # total
        self._ready: list[str] = []

    def add(self, piece: str) -> str:
        """Add a piece of text; return the text that is ready to be spoken."""
        return self._parse(piece, False)

    def end(self) -> str:
        """End the text; return the rest of the text to speak."""
        return self._parse("", True)

    def _parse(self, piece: str, is_last: bool) -> str:
        try:
            self._parser.Parse(piece, is_last)
        except expat.ExpatError as error:
            self._refuse(
                "well-formed", f"{expat.ErrorString(error.code)} at line {error.lineno}, column {error.offset + 1}"
            )
        if is_last:
            self._flush(len(self._run))
        elif (words := self._run.split()) and not self._run[-1].isspace():  # the last word may be incomplete
            self._flush(len(self._run[: -len(words[-1])].rstrip()))
        else:
            self._flush(len(self._run.rstrip()))
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def _refuse(self, expected: str, got: str) -> NoReturn:
        raise RequestRefused(f"text: expected {expected} SSML, got {got}")

    def _doctype(self, *_: object) -> None:
        self._refuse("no document type in", "a DOCTYPE")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"elements nested at most {MAX_DEPTH} deep in", "more")
        name = name.rpartition(":")[2]
        if self._depth == 1 and name != "speak":
            self._refuse("the root element speak of", name[:40])
        if self._silent:
            return
        if name in SILENT:
            self._silent = self._depth
        elif name == "sub" and "alias" in attributes:
            self._add(attributes["alias"])
            self._silent = self._depth
        elif name == "break":
            self._pause(attributes)
        elif name in SENTENCES:
            self._boundary()
        elif name == "say-as" and self._say_as is None:
            self._say_as = self._depth, attributes.get("interpret-as", ""), attributes.get("format", "")

    def _end(self, name: str) -> None:
        if self._silent == self._depth:
            self._silent = 0
        elif self._say_as is not None and self._say_as[0] == self._depth:
            (_, kind, _), text = self._say_as, self._say_as_text
            self._say_as, self._say_as_text = None, ""
            self._add(say_as(text, kind))
        elif not self._silent and name.rpartition(":")[2] in SENTENCES:
            self._boundary()
        self._depth -= 1

    def _add(self, text: str) -> None:
        if self._silent:
            return
        if self._say_as is not None:
            self._say_as_text += text
        else:
            self._run += text

    def _boundary(self) -> None:
        self._flush(len(self._run))
        stop = full_stop(self._last)
        if self._last:
            self._ready.append(f"{stop}\n")
            self._last = stop or self._last

    def _pause(self, attributes: dict[str, str]) -> None:
        seconds = STRENGTHS_S.get(attributes.get("strength", "medium"))
        if seconds is None:
            self._refuse(f"a break's strength among {', '.join(STRENGTHS_S)} in", attributes["strength"][:40])
        if "time" in attributes:
            found = TIME.fullmatch(attributes["time"].strip())
            if found is None:
                self._refuse("a break's time in s or ms in", attributes["time"][:40])
            seconds = float(found[1]) / (1000 if found[2] == "ms" else 1)
        if seconds > MAX_PAUSE_S:
            self._refuse(f"breaks of at most {MAX_PAUSE_S:g} s in", f"{seconds:g} s")
        self._pauses_s += seconds
        if self._pauses_s > MAX_PAUSES_S:
            self._refuse(f"breaks of at most {MAX_PAUSES_S:g} s in all in", "more")
        if seconds:
            self._flush(len(self._run))
            self._ready.append(PAUSE)
            self.pauses.append(seconds)

    def _flush(self, num_chars: int) -> None:
        """Return the first `num_chars` characters of the pending text as output."""
        text, self._run = without_emoji(self._run[:num_chars]), self._run[num_chars:]
        if text:
            self._ready.append(text)
            self._last = last_sign(text) or self._last


def say_as(text: str, kind: str) -> str:
    """Rewrite `text` so that it is spoken as `kind`, the value of `interpret-as` in SSML.

    Unknown kinds change nothing. Numbers get a form that every family reads correctly: thousands separators (except for
    years), or an ordinal suffix.
    """
    digits = "".join(text.split()).replace(",", "")
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= 15
    if kind in SPELLED:
        return " ".join(character for character in text if not character.isspace())
    if kind == "telephone":
        return ", ".join(" ".join(group) for group in re.findall(r"\d+|[A-Za-z]+", text)) or text
    if kind in ("cardinal", "number") and is_number:
        return f"{int(digits):,}"
    if kind == "ordinal" and is_number:
        number = int(digits)
        suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
        return f"{number}{suffix}"
    return text
