"""Cleaning of texts as in the authors' processor: layout and repeated marks are removed, and spaces follow the script.

Numbers, units and dates stay unchanged. Names such as URLs and file names are set aside first, because the marks in
them are not punctuation. Text in brackets `[]` and braces `{}` stays, as it may be a mark such as `[pause 2s]`.
"""

import re
import unicodedata

STOP = "。"
COMMA = "，"
INVISIBLE = re.compile("[\u200b\u200c\u200d\ufeff]")
LINK = re.compile(r"\[([^\[\]]+?)\]\((https?://[^)\s]+)\)")
# At the start of a line: heading, quotation, item, numbered item. Each may occur once, in this order.
LINE_MARKS = tuple(map(re.compile, (r"#{1,6}\s+", r">\s+", r"[-*+]\s+", r"\d+[.)]\s+")))

WORD = "A-Za-z0-9"
SIGN = "._/+:-"  # signs within names of files and versions
# A private-use character stands for each name that is set aside: `_visible` removes those of the text itself.
FIRST_PLACE = "\U000f0000"
LAST_PLACE = "\U0010ffff"
PLACES = f"{FIRST_PLACE}-{LAST_PLACE}"
LETTER = f"[A-Za-z{PLACES}]"
LONGEST_START = 64  # characters of a name before the one that makes it one: a letter, or the `@` of an address
IN_NAME = f"{WORD}_{PLACES}"  # neither precedes nor follows a name
# Names that are set aside, in this order.
NAMES = tuple(
    map(
        re.compile,
        # Each looks ahead by at most LONGEST_START characters, so that a text takes linear time.
        (
            r"https?://[^\s，。！？；、）】》〉」』]+",
            rf"(?<![\w.+{IN_NAME}-])[{WORD}._%+-]{{1,{LONGEST_START}}}+@[{WORD}.-]+\.[A-Za-z]{{2,}}(?![\w.{IN_NAME}-])",
            rf"(?<![{IN_NAME}])@[{WORD}_]{{1,32}}",
            rf"(?<![{IN_NAME}])[ur]/[{WORD}_]+",
            rf"(?<![{IN_NAME}])#(?!\s)[^\s#]+",
            rf"(?<![{IN_NAME}])\.(?=[._-]{{0,{LONGEST_START}}}+[{WORD}])[{WORD}._-]+",
            rf"(?<![{IN_NAME}])(?=[{WORD}])(?=[0-9{SIGN}]{{0,{LONGEST_START}}}+{LETTER})(?=[{WORD}]*[{PLACES}{SIGN}])"
            rf"[{WORD}](?:[{PLACES}{WORD}{SIGN}]*[{WORD}])?(?![{IN_NAME}])",
        ),
    )
)

HAN = "[\u3400-\u4dbf\u4e00-\u9fff\u3040-\u30ff]"  # ideographs and kana, which have no spaces between words
SPACES = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"[ \t\r\f\v]+", " "),
        (rf"({HAN})\s+(?={HAN})", r"\1"),
        (rf"({HAN})\s+(?=\d)", r"\1"),
        (rf"(\d)\s+(?={HAN})", r"\1"),
        (rf"({HAN})(?={LETTER}|[0-9][0-9{SIGN}]*{LETTER})", r"\1 "),
        (rf"({LETTER}[0-9{SIGN}]*)(?={HAN})", r"\1 "),
        (r" {2,}", " "),
        (r"(?<!\s)\s++([，。！？；：、”’」』】）》])", r"\1"),
        (r"([（【「『《“‘])\s+", r"\1"),
        (r"([，。！？；：、])\s*", r"\1"),
        (r"(?<!\s)\s++([,.;!?])", r"\1"),
        (r" {2,}", " "),
    )
)
BEGIN = r"(^|[。！？!?；;]\s*)"  # start of a sentence
BRACKETED = re.compile(rf"{BEGIN}[【〖『「]([^】〗』」]+)[】〗』」]\s*")
TITLE_END = rf"》(?=\s*(?:[{PLACES}]|[—–―-]{{2,}}|$|[。！？!?；;，,]))"
TITLE = re.compile(rf"{BEGIN}《([^》]+){TITLE_END}")
BRACKET_ENDS = re.compile("[】〗』」]")
TITLE_ENDS = re.compile(TITLE_END)
# Characters that stand for brackets that nothing closes. `_visible` removes them from the text itself.
HIDDEN = {ord(opening): chr(0xE000 + at) for at, opening in enumerate("【〖『「《")}
SHOWN = {ord(hidden): chr(opening) for opening, hidden in HIDDEN.items()}
ARROW = re.compile(r"(?:(?<!\s)\s++)?(?:<[-=]+>|(?<![-=])[-=]++>|<[-=]+|[→←↔⇒⇐⇔⟶⟵⟷⟹⟸⟺↦↤↪↩])\s*")
DASHES = re.compile(r"(?:(?<!\s)\s++)?[—–―-]{2,}\s*")
REPEATED = tuple(
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\.{3,}|…{2,}", STOP),
        (r"[。．]{2,}", STOP),
        (r"[，,]{2,}", COMMA),
        (r"[!！]{2,}", "！"),
        (r"[?？]{2,}", "？"),
    )
)
CRIES = re.compile(r"[!?！？]{2,}")


def cleaned(text: str) -> str:
    """Return `text` as a prompt contains it. Spaces between scripts may make it up to twice as long."""
    names = list[str]()

    def set_aside(match: re.Match[str]) -> str:
        names.append(put_back(match.group()))  # a tag may contain names
        return chr(ord(FIRST_PLACE) + len(names) - 1)

    def put_back(shown: str) -> str:
        return re.sub(f"[{PLACES}]", lambda match: names[ord(match.group()) - ord(FIRST_PLACE)], shown)

    text = _one_line(_visible(text))
    for pattern in NAMES:
        text = pattern.sub(set_aside, text)
    text = _spaced(text)
    for _ in range(2):  # a bracket may follow another one
        text = BRACKETED.sub(rf"\1\2{STOP}", _without_open_ones(text, BRACKET_ENDS)).translate(SHOWN)
    text = TITLE.sub(r"\1\2", _without_open_ones(text, TITLE_ENDS)).translate(SHOWN)
    text = DASHES.sub(STOP, ARROW.sub(COMMA, text))
    for pattern, by in REPEATED:
        text = pattern.sub(by, text)
    return put_back(_spaced(CRIES.sub(_cry, text))).strip()


def _without_open_ones(text: str, ends: re.Pattern[str]) -> str:
    """Hide the brackets in `text` that no match of `ends` closes, because searching from each of them would be slow."""
    parts = list[str]()
    start = 0
    for match in ends.finditer(text):
        other = text.rfind(match.group(), start, match.start()) + 1  # another closing bracket, which ends nothing
        other = max(other, start)
        parts += [text[start:other].translate(HIDDEN), text[other : match.end()]]
        start = match.end()
    return "".join([*parts, text[start:].translate(HIDDEN)])


def _visible(text: str) -> str:
    text = INVISIBLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n").replace("\u3000", " "))
    return "".join(
        character for character in text if character in "\n\t " or not unicodedata.category(character).startswith("C")
    )


def _one_line(text: str) -> str:
    """Return `text` without marks of Markdown, and with full stops between its lines."""
    lines = list[str]()
    for line in LINK.sub(r"\1 \2", text).splitlines():
        line = line.strip()
        for mark in LINE_MARKS:
            line = line[match.end() :] if (match := mark.match(line)) else line
        lines += [line] if line else []
    return STOP.join(lines)


def _spaced(text: str) -> str:
    for pattern, by in SPACES:
        text = pattern.sub(by, text)
    return text.strip()


def _cry(match: re.Match[str]) -> str:
    """Return one mark of each kind from a run of question and exclamation marks."""
    marks = match.group()
    return ("？" if {*marks} & {*"?？"} else "") + ("！" if {*marks} & {*"!！"} else "")
