"""Incremental Markdown reader: converts Markdown to the text to speak."""

import re
from collections import Counter, deque
from collections.abc import Collection

from markdown_it import MarkdownIt
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

from stretto_client.decoration import (
    DECORATION,
    EMOJI,
    EMOJIS,
    MAX_DIRECTION_CHARS,
    FaceFilter,
    begins_direction,
    direction,
    without_emoji,
)
from stretto_client.latex import LatexFilter
from stretto_client.ssml import Change
from stretto_client.tags import FORMATTING, MAX_NAMES
from stretto_contract.sentence_ends import MAX_LINE_CHARS, WIDE, LineEnds, full_stop, joins, last_sign

MAX_RECENT_CHARS = 40
MAX_HELD_CHARS = 1000  # maximum length of an unclosed emphasis, link or table row; in longer ones, marks are text
MAX_MARKS = 60  # maximum number of marks in such an unclosed run, to limit parsing time
INLINE = MarkdownIt("commonmark", {"html": True, "maxNesting": 20}).enable("strikethrough")
ATOM = re.compile(rf"[ \t]|[^ \t{WIDE}]{{0,{MAX_HELD_CHARS - 1}}}[^ \t]")
END_OF_ATOM = re.compile(rf"[{WIDE} \t]")
MARK = re.compile(rf"[*_`~<&\\\[{EMOJI}]|://")
COUNTED_MARKS = re.compile(r"[*_`~<&\\\[!]")
OPENERS = re.compile(r"(?<![\w*_~])(?:[*_]{1,3}|~~)(?=[^\s*_~])")
CLOSERS = re.compile(r"(?<=[^\s*_~])(?:[*_]{1,3}|~~)(?![0-9A-Za-z*_~])")
BETWEEN = re.compile(r"(?<=[0-9A-Za-z)])\*+(?=[-−]?[0-9]|[A-Za-z(])")  # a star that is not emphasis, as in 2*3
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
FENCE = re.compile(r"[ \t]*(?P<mark>`{3,}|~{3,})[^`~]*")
ROW = re.compile(r"[ \t]*\|(?P<cells>.*)\|[ \t]*", re.DOTALL)
DEFINITION = re.compile(r"[ \t]{0,3}\[[^\]]+\]:[ \t]*(?:https?://|www\.|mailto:|[/#<])\S*.*", re.DOTALL)
WHOLE_LINE = re.compile(r"[ \t]*(?:\||```|~~~|#{1,6}[ \t]|\[[^\]]*$|\[[^\]]*\](?:$|:))")


def _url(state: StateInline, silent: bool) -> bool:
    """Parse a bare URL as text, so that its underscores are not emphasis (a rule of markdown-it)."""
    match = URL_REST.match(state.src, state.pos) if state.pending.endswith(("http", "https")) else None
    if match is None:
        return False
    if not silent:
        state.pending += match.group()
    state.pos = match.end()
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
    markdown-it parses inline marks. In text without marks only line ends change: paragraphs, headings, list items,
    quotes, table rows and complete lines (`LineEnds`) get a full stop unless they end with punctuation, so that the
    model pauses after them. The last line of the text gets none. A word that a hyphen cuts at the end of a line is
    joined. If emphasis is not closed on its line, double marks are dropped and single ones are kept. Formulas become
    words; faces and stage directions are left out, as emoji are.

    Args:
        rendered: Tags that the model renders; None if unknown.
    """

    def __init__(self, rendered: Collection[str] | None = None) -> None:
        self.pauses = deque[Change]()
        self.left_out: list[str] = []
        self._rendered = rendered
        self._formulas = LatexFilter()
        self._faces = FaceFilter()
        self._line_ends = LineEnds()
        self._hyphen = ""  # hyphen after the last word, which may cut it at the end of a line
        self._recent = ""  # last characters returned
        self._line = ""  # unread part of the line
        self._run = ""  # words held back until an emphasis, a link or a tag ends
        self._num_marks = 0  # marks in the run
        self._in_text = False  # True after the marks at the beginning of the line
        self._fence = ""  # closing mark of the current code block
        self._block = ""  # "item" and "quote" end with a full stop; "" is a paragraph
        self._gap = ""  # space not returned yet, because more may follow
        self._is_gap_read = False  # True if a dropped emoji needs no second space after it
        self._last = ""  # last character returned, as in `last_sign`
        self._read = ""  # beginning of the text returned since the last line end, or since the beginning of the block
        self._is_unclosed = False  # True if the line has ended within an emphasis, a link or a tag
        self._ended: str | None = None  # line that has ended, until text follows it; "" if it is complete in any case
        self._ready: list[str] = []

    def add(self, piece: str) -> str:
        self._take_lines(self._faces.add(self._formulas.add(piece)))
        return self._returned()

    def end(self) -> str:
        self._take_lines(self._faces.add(self._formulas.end()) + self._faces.end())
        self._take("", is_whole=True)
        self._close()
        self._ready.append(self._hyphen)
        self._gap = self._gap.removesuffix("\n")  # added by `_take`
        self._ready.append(self._gap)
        return self._returned()

    def _returned(self) -> str:
        text = "".join(self._ready)
        self._ready.clear()
        return text

    def _take_lines(self, text: str) -> None:
        lines = text.split("\n")
        for line in lines[:-1]:
            self._take(line, is_whole=True)
        self._take(lines[-1], is_whole=False)

    def _take(self, text: str, is_whole: bool) -> None:
        """Append text to the current line; `is_whole` is True if the line ends after it."""
        self._line += text
        if is_whole:
            self._line = self._line.removesuffix("\r")
        if not self._in_text and not self._begin(is_whole):
            return
        self._read_atoms(is_whole)
        if is_whole:
            self._end_line()

    def _end_line(self) -> None:
        """End the current line. Unless it is in a block, the next line decides whether it needs a full stop."""
        if self._read and not self._is_unclosed and self._ended is None:
            self._ended = self._read
        self._read = ""
        self._is_unclosed = False
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
        tail = self._line[start:]
        if not is_whole and not is_long and WHOLE_LINE.match(tail):
            return False
        self._in_text = True
        if not tail.strip() and "item" not in kinds:
            self._close()
            self._ended = ""
            if start:
                tail = ""
        elif (is_block := not is_long and self._whole_line(tail)) or kinds or NUMBERED.match(tail):
            block = "item" if "item" in kinds or not kinds else "quote"
            if block == "item" or self._block != block:
                self._close()
                self._ended = ""
            else:
                self._ended = None
            if is_block:
                self._read_block(tail)
                tail = ""
            else:
                self._block = block
        elif self._block == "quote":
            self._close()
        elif self._block and tail[:1].isspace():  # an item goes on
            self._ended = None
        self._line = tail
        return True

    def _prefixes(self, line: str) -> tuple[set[str], int]:
        """Return the kinds of quote and item marks at the beginning of a line, and their end."""
        kinds = set[str]()
        start = 0
        while not RULE.fullmatch(line, start) and (match := PREFIX.match(line, start)):
            kinds.add(str(match.lastgroup))
            start = match.end()
        return kinds, start

    def _whole_line(self, line: str) -> bool:
        kinds = (RULE, DELIMITER_ROW, HEADING, FENCE, ROW, DEFINITION)
        return any(pattern.fullmatch(line) for pattern in kinds)

    def _read_block(self, line: str) -> None:
        if RULE.fullmatch(line) or DELIMITER_ROW.fullmatch(line) or DEFINITION.fullmatch(line):
            self._stop()
        elif match := FENCE.fullmatch(line):
            self._fence = match["mark"]
        else:
            match = HEADING.fullmatch(line)
            if match is not None:
                self._put(self._inline(match["title"] or ""))
            elif match := ROW.fullmatch(line):
                cells = (self._inline(cell.strip()) for cell in re.split(r"(?<!\\)\|", match["cells"]))
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
        self._ended = ""
        self._in_text = True
        return True

    def _inline(self, text: str) -> str:
        return read_inline(text) if MARK.search(text) else text

    def _read_atoms(self, is_whole: bool) -> None:
        """Process the complete parts of the line: words, and characters of scripts without spaces."""
        pos = 0
        while pos < len(self._line):
            match = ATOM.match(self._line, pos)
            assert match is not None, self._line
            atom = match.group()
            is_ended = len(atom) == MAX_HELD_CHARS or END_OF_ATOM.match(atom[-1])
            if match.end() == len(self._line) and not is_whole and not is_ended:
                break  # the rest of it may follow
            pos = match.end()
            self._atom(atom)
        self._line = self._line[pos:]
        if is_whole:
            self._flush()

    def _atom(self, atom: str) -> None:
        if self._run:
            self._run += atom
        elif MARK.search(atom) or begins_direction(atom):
            self._run = atom
        elif atom.isspace():
            if not self._is_gap_read:
                self._widen(atom)
            return
        else:
            self._put(atom)
            return
        self._num_marks += len(COUNTED_MARKS.findall(atom))
        if len(self._run) > MAX_HELD_CHARS or self._num_marks > MAX_MARKS or not self._is_open():
            self._flush()

    def _is_open(self) -> bool:
        if self._run[0] == "(" and ")" not in self._run and len(self._run) <= MAX_DIRECTION_CHARS:
            return True
        return is_open(self._run)

    def _widen(self, space: str) -> None:
        self._gap = (self._gap + space)[:MAX_HELD_CHARS]

    def _flush(self) -> None:
        run = self._run
        self._run = ""
        self._num_marks = 0
        if not run:
            return
        punctuation = direction(run, self._recent, self._rendered)
        if punctuation is not None:
            if run not in self.left_out and len(self.left_out) < MAX_NAMES:
                self.left_out.append(run)
            run = DECORATION + punctuation
        self._is_unclosed = is_open(run)
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
        if self._hyphen:
            self._put_hyphen(text)
        if self._ended is not None and (not self._ended or self._line_ends.is_complete(self._ended, text)):
            self._stop()
            self._block = "" if self._ended else self._block  # a complete line also ends its item
        self._last = last_sign(text) or self._last
        if text[-1] == "-" and text[-2:-1].isalpha():
            self._hyphen = "-"
            text = text[:-1]
        self._ready.append(self._gap + text)
        self._read = (self._read + self._gap.lstrip("\n") + text)[:MAX_LINE_CHARS]
        self._recent = (self._recent + self._gap + text)[-MAX_RECENT_CHARS:]
        self._ended = None
        self._gap = ""
        self._is_gap_read = False

    def _put_hyphen(self, following: str) -> None:
        """Append the hyphen after the last word, or join the word with the next line if it is cut there."""
        joined = joins(self._recent, following) if self._gap.strip(" \t") == "\n" and self._ended != "" else None
        self._ready.append(self._hyphen if joined is None else joined)
        if joined is not None:
            self._ended = None
            self._gap = ""
        self._hyphen = ""

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
