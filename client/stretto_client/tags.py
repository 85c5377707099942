"""Filter for reasoning, special tokens and tags in texts of language models.

- A block of reasoning is left out: `<think>The user greets.</think>Hello.` becomes `Hello.`
- Other tags and special tokens are left out, but not the text between them: `<answer>Hello.</answer><|im_end|>`.
- Tags that the model renders are kept, such as `<laugh>` for some.
- The mark `[voice:NAME]` sets the voice of the text after it.
"""

import re
from collections import deque
from collections.abc import Collection
from typing import NamedTuple

from stretto_contract.sentence_ends import PAUSE

MAX_TAG_CHARS = 500  # maximum length of a tag; in a longer one, `<` is text
MAX_HEADER_CHARS = 64
# limits on the reported names of tags that are left out
MAX_NAMES = 16
MAX_NAME_CHARS = 64
# Soft hyphens, zero-width spaces, word joiners and marks of direction. Joiners (U+200C, U+200D) have a meaning in emoji
# and in some scripts.
INVISIBLE = dict.fromkeys(
    (0xAD, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, 0xFEFF, *range(0x202A, 0x202F), *range(0x2060, 0x206A))
)
CUT_WORD = re.compile(r"\xad[ \t\r]{0,4}\n[ \t]{0,16}")  # a soft hyphen at the end of a line
BEGUN_CUT = re.compile(r"\xad[ \t\r]{0,4}(?:\n[ \t]{0,16})?\Z")
FORMATTING = re.compile(  # HTML used in Markdown, which the Markdown reader removes
    r"<!--.*|</?(?:a|abbr|b|big|br|center|cite|code|del|details|div|em|font|h[1-6]|hr|i|img|ins|kbd|li|mark|ol|p|pre|q|s|samp"
    r"|small|span|strike|strong|sub|summary|sup|table|tbody|td|th|thead|tr|tt|u|ul|var)"
    r"(?:\s+[\w-]+=(?:\"[^\"]*\"|'[^']*'))*\s*/?>",
    re.IGNORECASE | re.DOTALL,
)
# Tags that published speech models render as a sound; kept if it is unknown which tags the served model renders.
SOUNDS = "breath chuckle clucking cough gasp giggle groan hissing laugh laughter lipsmack noise sigh sniffle sniff yawn"
KNOWN_TAGS = tuple(f"<{name}>" for name in SOUNDS.split())

NAME = r"[^\W\d_][\w.-]*(?::[^\W\d][\w.-]*)?"
# limited, so that the time for parsing is linear
GAP = r"\s{1,9}"
EQUALS = r"\s{0,9}=\s{0,9}"
VALUE = r"(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'=<>`/]+)"
FIELDS = rf"(?:=[^\s<>]*)?(?:{GAP}[\w:.-]+{EQUALS}{VALUE})*"
TAG = re.compile(rf"<(?P<slash>/?)(?P<name>{NAME}){FIELDS}\s{{0,9}}/?>")
BEGUN_FIELD = rf"[\w:.-]+(?:{EQUALS}(?:\"[^\"<>]*|'[^'<>]*|[^\s\"'=<>`/]+)?|\s{{0,9}})"
BEGUN_TAG = re.compile(rf"<(?:/?(?:{NAME}:?{FIELDS}(?:{GAP}(?:{BEGUN_FIELD})?)?\s{{0,9}}/?)?)?")
SPECIAL = re.compile(r"<[|｜](?P<slash>/?)(?P<name>[^\s<>|｜/][^\s<>|｜]{0,63})[|｜]>")
BEGUN_SPECIAL = re.compile(r"<(?:[|｜][^\s<>|｜]{0,65}[|｜]?)?")
BRACKETED = re.compile(r"\[(?P<slash>/?)(?P<name>THINK)\]|◁(?P<slash2>/?)(?P<name2>[a-z]{1,16})▷")
BEGUN_BRACKETED = re.compile(r"\[/?T?H?I?N?K?|◁/?[a-z]{0,16}")
MAY_BEGIN = re.compile(r"[<\[◁]")
MAX_VOICE_CHARS = 128  # maximum length of the name in a mark
VOICE_MARK = re.compile(rf"\[(?:voice:(?P<voice>[^\[\]\n]{{0,{MAX_VOICE_CHARS}}})|/voice)\]", re.IGNORECASE)
BEGUN_VOICE_MARK = re.compile(rf"\[(?:/?v?o?i?c?e?|voice:[^\[\]\n]{{0,{MAX_VOICE_CHARS}}})", re.IGNORECASE)
ROOT = re.compile(r"<\?xml\s|<speak[\s>/]")  # the beginning of SSML
BEGUN_ROOTS = ("<?xml ", "<speak>")

BOUND = re.compile(r"(?:^|[\W_])(?:begin|start|end|of|im)(?=[\W_]|$)")  # in the name of a token that bounds a block
END = re.compile(r"(?:^|[\W_])end(?=[\W_]|$)")
REASONING = re.compile(
    r"think|thought|reasoning|^(?:reason|reflection|reflections|scratchpad|cot|monologue|innermonologue|rationale)$"
)
MESSAGE_ENDS = ("end", "return", "call", "start", "channel")  # tokens after which no part of a message follows
# Tokens that are followed by a header. After one of HEADED, the header ends with a token. After one of LINE_HEADED, the
# header is the name of a role and ends with the line.
HEADED = ("start", "start_header_id", "channel")
LINE_HEADED = ("im_start", "start_of_turn")
HEADER = re.compile(r"[\w .=:-]*")
ROLES = ("system", "user", "assistant", "model", "tool", "developer")


class Tag(NamedTuple):
    """Tag or special token; `is_closing` is True if it begins with a slash."""

    text: str
    name: str
    is_closing: bool

    @property
    def block(self) -> str:
        """Name of the block that the tag begins or ends."""
        local = self.name.rpartition(":")[2].lower().replace("▁", "_")
        return re.sub(r"[\W\d_]+", "", BOUND.sub("", local))

    @property
    def is_end(self) -> bool:
        """True if the tag ends a block."""
        return self.is_closing or END.search(self.name.lower().replace("▁", "_")) is not None


def is_reasoning(name: str) -> bool:
    """Return True if `name` is the name of a block of reasoning, as in `Tag.block`."""
    return REASONING.search(name) is not None


def tag_at(text: str, start: int) -> tuple[Tag | None, bool]:
    """Return the tag that begins at `start`, and whether more text could still complete one."""
    for complete, begun in ((TAG, BEGUN_TAG), (SPECIAL, BEGUN_SPECIAL), (BRACKETED, BEGUN_BRACKETED)):
        if (match := complete.match(text, start)) is not None and len(match.group()) <= MAX_TAG_CHARS:
            parts = match.groupdict()
            name = parts["name"] or parts.get("name2") or ""
            return Tag(match.group(), name, bool(parts["slash"] or parts.get("slash2"))), False
        if len(text) - start <= MAX_TAG_CHARS and begun.fullmatch(text, start):
            return None, True
    return None, False


class TagFilter:
    """Incremental filter that removes tags. The result does not depend on how the text is split into pieces.

    Code in Markdown is unchanged, as are tags that the model renders, and HTML used in Markdown. A block of reasoning
    that is not closed is left out to the end of the text.

    Args:
        tags: Tags that the model renders, such as `<laugh>`; None if unknown.
        may_be_ssml: True if a text that begins with SSML's root element passes unchanged.
        reads_voices: True to return PAUSE in place of each mark of a voice.

    Attributes:
        is_ssml: True if the text is SSML.
        left_out: Names of tags, blocks and special tokens that were left out, without duplicates, at most MAX_NAMES.
        voices: Voice of each returned PAUSE, in order; None for the voice of the request.
    """

    def __init__(self, tags: Collection[str] | None = None, may_be_ssml: bool = False, reads_voices: bool = False):
        self._kept = {tag.strip("<>/") for tag in (KNOWN_TAGS if tags is None else tags) if tag.startswith("<")}
        self._may_be_ssml = may_be_ssml
        self._reads_voices = reads_voices
        self.voices = deque[str | None]()
        self.is_ssml = False
        self.left_out: list[str] = []
        self._held = ""  # beginning of a tag or a header that may go on
        self._block = ""  # name of the block of reasoning
        self._header = ""  # token whose header follows
        self._channel = ""  # header of the last `<|channel|>`
        self._is_blank = True  # True until a character other than a space is returned
        self._last = ""  # last character returned
        self._is_cut = False  # True after a tag that was left out, until text follows
        self._num_ticks = 0  # length of the current run of backticks
        self._code = 0  # length of the run that began code
        self._is_escaped = False  # True after a backslash
        self._cut = ""  # soft hyphen that may stand at the end of a line
        self._ready: list[str] = []

    def add(self, piece: str) -> str:
        """Add a piece of text; return the text that is ready."""
        text = self._cut + piece
        begun = BEGUN_CUT.search(text)
        self._cut = "" if begun is None else begun.group()
        text = text.removesuffix(self._cut) if self._cut else text
        return self._read(CUT_WORD.sub("", text).translate(INVISIBLE), is_last=False)

    def end(self) -> str:
        """End the text; return the rest of it."""
        cut = self._cut
        self._cut = ""
        return self._read(cut.translate(INVISIBLE), is_last=True)

    def _read(self, piece: str, is_last: bool) -> str:
        text = self._held + piece
        at = 0
        while at < len(text) and not self.is_ssml:
            if self._header:
                after = self._after_header(text, at, is_last)
            elif MAY_BEGIN.match(text, at):
                after = self._after_mark(text, at, is_last)
            else:
                match = MAY_BEGIN.search(text, at)
                after = match.start() if match else len(text)
                self._put(text[at:after])
            if after is None:
                break
            at = after
        if self.is_ssml:
            self._ready.append(text[at:])
            at = len(text)
        self._held = text[at:]
        ready = "".join(self._ready)
        self._ready.clear()
        return ready

    def _after_mark(self, text: str, at: int, is_last: bool) -> int | None:
        """Parse a possible tag at `at`; return the end of the parsed text, or None if more text is needed."""
        if self._may_be_ssml and self._is_blank and not self._block:
            tail = text[at:]
            if ROOT.match(tail):
                self.is_ssml = True
                return at
            if not is_last and any(root.startswith(tail) for root in BEGUN_ROOTS):
                return None
        if self._reads_voices and not self._block:
            if (mark := VOICE_MARK.match(text, at)) is not None and not self._is_code:
                self._put_voice(mark)
                return mark.end()
            if not is_last and BEGUN_VOICE_MARK.fullmatch(text, at):
                return None
        tag, is_begun = tag_at(text, at)
        if is_begun and not is_last:
            return None
        if tag is None:
            self._put(text[at])
            return at + 1
        if self._block:
            self._end_block(tag)
        elif self._is_literal(tag):
            self._put(tag.text)
        else:
            self._leave_out(tag)
        return at + len(tag.text)

    @property
    def _is_code(self) -> bool:
        """True if the next character is in Markdown code or after a backslash."""
        self._end_ticks()
        return bool(self._code) or self._is_escaped

    def _put_voice(self, mark: re.Match[str]) -> None:
        self.voices.append((mark["voice"] or "").strip() or None)
        self._ready.append(PAUSE)
        self._last = ""
        self._is_blank = False

    def _is_literal(self, tag: Tag) -> bool:
        """Return True if a tag is text: in code, after a backslash, rendered by the model, or HTML for formatting."""
        if self._is_code or tag.name in self._kept or tag.text.strip("<>/") in self._kept:
            return True
        return FORMATTING.fullmatch(tag.text) is not None

    def _leave_out(self, tag: Tag) -> None:
        """Leave out a tag; begin a block of reasoning, or expect a header, if it begins one."""
        name = tag.name[:MAX_NAME_CHARS]
        if name not in self.left_out and len(self.left_out) < MAX_NAMES:
            self.left_out.append(name)
        self._is_cut = True
        lowered = tag.name.lower()
        if is_reasoning(tag.block) and not tag.is_end and not tag.text.endswith("/>"):
            self._block = tag.block
        elif lowered == "message" and self._channel not in ("", "final"):
            self._block = lowered
        elif lowered in HEADED + LINE_HEADED:
            self._header = lowered
            self._channel = ""

    def _end_block(self, tag: Tag) -> None:
        """End the block of reasoning if `tag` is its end."""
        if self._block == "message":
            if tag.name.lower() in MESSAGE_ENDS:
                self._block = self._channel = ""
                self._leave_out(tag)
        elif tag.is_end and tag.block == self._block:
            self._block = ""

    def _after_header(self, text: str, at: int, is_last: bool) -> int | None:
        """Read the header that may begin at `at`; return its end, or None if more of it is needed."""
        match = HEADER.match(text, at)
        assert match is not None
        end = match.end()
        header = match.group().strip()
        is_long = end - at > MAX_HEADER_CHARS
        if not is_long and not is_last and (end == len(text) or text[end:] == "<"):
            return None
        role = self._header
        self._header = ""
        if role in LINE_HEADED:
            is_header = header.lower() in ROLES and text[end : end + 1] in ("", "\n", "<")
            end += text.startswith("\n", end)
        else:
            is_header = not is_long and text.startswith("<|", end)
        if not is_header:
            return at
        if role == "channel":
            self._channel = header.partition(" ")[0].lower() or "final"
        return end

    def _put(self, text: str) -> None:
        """Output `text`, without spaces that a tag has left at the beginning of a line or after another space."""
        if self._block:
            return
        if self._is_cut:
            if not self._last.strip():
                text = text.lstrip(None if self._is_blank else " \t")
            if not text:
                return
            if needs_space(self._last, text[0]):
                text = f" {text}"
            self._is_cut = False
        text = text.replace(PAUSE, " ") if self._reads_voices else text
        for token in re.split(r"(\n|`+|\\)", text):
            self._follow(token)
        if text:
            self._ready.append(text)
            self._last, self._is_blank = text[-1], self._is_blank and text.isspace()

    def _follow(self, token: str) -> None:
        """Track whether text is Markdown code: between equal runs of backticks, on one line if these are below 3."""
        if not token:
            return
        if token[0] == "`":
            self._num_ticks += len(token) - self._is_escaped
        else:
            self._end_ticks()
        if token == "\n" and self._code < 3:
            self._code = 0
        self._is_escaped = token == "\\" and not self._is_escaped

    def _end_ticks(self) -> None:
        """Begin or end code after a run of backticks."""
        num = self._num_ticks
        self._num_ticks = 0
        if num and not self._code:
            self._code = num
        elif num and (num == self._code or num > self._code >= 3):
            self._code = 0


def marked_voices(text: str, tags: Collection[str] | None = None) -> list[str | None]:
    """Return the voices of the marks in a text in Markdown, in order; None for the voice of the request."""
    if VOICE_MARK.search(text.translate(INVISIBLE)) is None:
        return []
    tag_filter = TagFilter(tags, reads_voices=True)
    tag_filter.add(text)
    tag_filter.end()
    return [*tag_filter.voices]


def needs_space(last: str, first: str) -> bool:
    """Return True if a space must separate the text that ends with `last` from text that begins with `first`."""
    if not last or last.isspace() or first.isspace() or (last >= "\u2e80" and first >= "\u2e80"):
        return False
    return (last.isalnum() or last in ".,;:!?…)]\"'”’»%") and (first.isalnum() or first in "\"'“‘«([*_")
