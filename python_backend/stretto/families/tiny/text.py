"""Normalisation of any text to words in a small English alphabet, for families without a subword tokenizer."""

import re
import unicodedata

from anyascii import anyascii

from stretto.families.tiny.identifiers import spell_identifiers
from stretto.families.tiny.letters import name_letters, spell, spell_acronyms
from stretto.families.tiny.notation import plain_notation
from stretto.families.tiny.numbers import DIRECTIONS, MONTH, MONTH_NAMES, name_units, write_out
from stretto.families.tiny.numerals import read_numerals
from stretto.families.tiny.units import CURRENCIES, SIGNS
from stretto_contract.scripts import GREEK_SYMBOL, without_faces
from stretto_contract.sentence_ends import joins

# Characters whose meaning would be lost in ASCII.
SYMBOLS = {
    "×": " times ", "÷": " divided by ", "±": " plus or minus ", "…": ". ", "—": ", ", "–": "-", "−": "-",
    "℃": "°C", "℉": "°F", "µ": "micro", "μ": "micro", "№": " number ", "≈": "~", "≤": "<=", "≥": ">=", "≠": "!=",
    "→": " to ", "√": " square root of ", "∞": " infinity ", "‰": " per mille ", "∶": ":", "＜": "<", "＞": ">",
    "∑": " sum ", "∏": " product ", "∫": " integral ", "∂": " partial ", "∇": " del ", "∈": " in ", "∉": " not in ",
    "∪": " union ", "∩": " intersection ", "⊂": " is a subset of ", "⊆": " is a subset of ", "⊃": " is a superset of ",
    "⊥": " is perpendicular to ", "∆": " delta ", "∓": " minus or plus ", "≅": " is congruent to ", "≃": "~", "∼": "~",
    "≪": " is much less than ", "≫": " is much greater than ", "≢": " is not identical to ", "⊕": " plus ",
    "⊗": " times ",
    "≦": "<=", "≧": ">=", "⩽": "<=", "⩾": ">=", "∕": "/", "⁄": "/", "∗": "*", "‱": " per ten thousand ",
    "¶": " paragraph ", "¤": " ", "‽": "?!", "⁇": "??", "⁈": "?!", "⁉": "!?", "‼": "!!", "﹣": "-", "⁃": "-",
    # with the names that Unicode gives them
    **{sign: f" {unicodedata.name(sign).lower().replace('-', ' ')} " for sign in "∀∃∄∅∛∜∠∥∦∴∵≁≄≇≉≮≯≰≱⊄⊅⊈⊉"},
    "⇒": " implies ", "⇔": " if and only if ", "∧": " and ", "∨": " or ", "¬": " not ", "∝": " is proportional to ",
    "≡": " is equivalent to ", "·": " ", "§": " section ", "←": " from ",
    "\u200b": " ",  # a possible line break between words of scripts without spaces
    **dict.fromkeys("`´ʹˈꞌ‛‘’ʼ′＇", "'"),  # keyboards differ in their apostrophes
}  # fmt: skip
KEPT = f"{SIGNS}¢°^"  # read by RULES
INVISIBLE = "Cf"  # category of soft hyphens, joiners and marks of direction, which do not end a word
DROPPED = {"So", "Sk", "Cs", "Co", "Cn", "Cc"}  # emoji, lone accents, surrogates, controls
SIGN_CATEGORIES = {"Sm", "Sc", "Po"}
PUNCTUATION = re.compile(r"[\s.,:;!?'\"()/-]*")
ABBREVIATIONS = {
    "mr": "mister", "mrs": "missus", "ms": "miss", "dr": "doctor", "prof": "professor", "jr": "junior",
    "sr": "senior", "vs": "versus", "etc": "et cetera", "approx": "approximately", "dept": "department",
    "ave": "avenue", "rd": "road", "blvd": "boulevard", "mt": "mount", "capt": "captain", "gen": "general",
    "sgt": "sergeant", "lt": "lieutenant", "col": "colonel", "sen": "senator", "gov": "governor", "pres": "president",
    "apt": "apartment", "hwy": "highway", "ca": "circa", "messrs": "messieurs", "bros": "brothers",
    "univ": "university", "avg": "average", "assn": "association", "esq": "esquire", "tel": "telephone",
    "rev": "reverend", "hon": "honorable", "govt": "government", "inc": "incorporated",
    "ltd": "limited", "corp": "corporation", "min": "minutes", "max": "maximum",
}  # fmt: skip
BEFORE_NUMBERS = {  # abbreviations that can also be words or ends of sentences
    "fig": "figure", "vol": "volume", "ch": "chapter", "p": "page", "pp": "pages", "sec": "section", "art": "article",
    "ext": "extension", "rm": "room", "ste": "suite", "eq": "equation", "op": "opus",
}  # fmt: skip
WEEKDAYS = {
    "Mon": "Monday", "Tue": "Tuesday", "Tues": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday", "Thur": "Thursday",
    "Thurs": "Thursday", "Fri": "Friday", "Sat": "Saturday", "Sun": "Sunday",
}  # fmt: skip
MONTHS = {
    "jan": "January", "feb": "February", "mar": "March", "apr": "April", "jun": "June", "jul": "July",
    "aug": "August", "sep": "September", "sept": "September", "oct": "October", "nov": "November", "dec": "December",
}  # fmt: skip
MICRO = re.compile(r"(?<=[\d\s])μ(?=[gmls]\b)")  # the Greek letter before a unit
CUT_WORD = re.compile(
    r"(?<![\w-])([\w-]{0,60}[^\W\d_])[-\xad\u2010][ \t\r]{0,4}\n\s*(\w)"
)  # a word cut at the end of a line
LONE_DEGREES = re.compile(r"(?<!\d)(?<!\d )°(?!\s?[CF]\b)")  # decoration

# After a number, "ms." is a unit, and "col." or "gen." no title.
ABBREVIATION = re.compile(rf"(?<!\d)(?<!\d\s)\b({'|'.join(ABBREVIATIONS)})\.", re.IGNORECASE)
TITLE = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof)(?=\s+[A-Z])")
MONTH_ABBREVIATION = re.compile(
    rf"\b({'|'.join(MONTHS)})\.?(?=\s+'?\d)|(?<=\d )({'|'.join(MONTHS)})\b\.?", re.IGNORECASE
)
DOTTED = re.compile(r"\b(?:[A-Za-z]\.){2,}(?:[A-Za-z]\b)?|\b(?:[A-Z]\.)(?=\s+[A-Z])")
AFTER_DIGIT = re.compile(r"\d\s?\Z")
NUMBERED_ABBREVIATION = re.compile(rf"\b({'|'.join(BEFORE_NUMBERS)})\.\s?(?=\d)", re.IGNORECASE)
# "Mon", "Wed", "Sat" and "Sun" are also words, so they need a date or time after them, or another day in a range.
DAYS = "Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun"
DATED = rf",?\s+(?:{'|'.join(month.title() for month in MONTHS)}|{MONTH})\b|,?\s+\d"
WEEKDAY = re.compile(
    rf"\b(?:(Mon|Wed)\.|(Tues?|Thu(?:rs?)?|Fri)\b\.?|(Sat|Sun)\.(?={DATED})|(Mon|Wed|Sat|Sun)\b(?={DATED}))"
)
# Words that begin a sentence more often than a name: before one of these, an abbreviation may end a sentence.
STARTERS = (
    "The|An?|He|She|It|We|They|You|I|This|That|These|Those|There|Here|His|Her|Its|Our|Their|My|Your|But|And|Or|So|Then"
    "|When|While|After|Before|If|As|At|In|On|For|From|With|Without|To|By|Of|Not|No|Yes|What|Who|Where|Why|How|Is|Are"
    "|Was|Were|Do|Does|Did|Can|Could|Will|Would|Should|Let|Please|Now|Today|Tomorrow|Yesterday|Some|Many|Most|All"
    "|Every|Each|Both|Another|Other|However|Meanwhile|Later|Next|Finally|Also|Instead|Although|Because|Since|Until"
    "|Once|Even|Just|Only|Never|Always|Maybe|Perhaps|Everyone|Everything|Nobody|Nothing|Someone|Something|Two|Three"
)
FINAL = "inc|ltd|corp|co|jr|sr|esq|bros|univ|assn|govt|ave|blvd|rd|st|min|max|avg"  # may be the last word of a sentence
NAMED_DAY = rf"(?:{DAYS}|{MONTH})"
SENTENCE_END = re.compile(
    rf"\b(?:(?i:etc)\.(?=[\"')\]]*\s+[\"'(]?[A-Z])|[AaPp]\.\s?[Mm]\.(?=[\"')\]]*\s+[\"'(]?(?!{NAMED_DAY})(?:[A-Z][a-z']|[IA]\s))"
    rf"|(?!(?i:e\.g|i\.e|a\.k))(?:(?:[A-Za-z]\.){{2,}}|[A-HJ-Z]\.|(?i:{FINAL})\.)(?=[\"')\]]*\s+[\"'(]?(?:{STARTERS})\b)"
    rf"|(?:(?:[A-Za-z]\.){{2,}}|(?i:etc|{FINAL})\.)(?=[\"')\]]*\s*$))"
)
WEEKDAY_RANGE = re.compile(rf"\b({DAYS})\.?\s?-\s?({DAYS})\b\.?")
ANY_MONTH = "|".join([*MONTH_NAMES, *(f"{month.title()}\\b" for month in MONTHS)])
HYPHENED_DATE = re.compile(rf"\b(\d{{1,2}})-({ANY_MONTH})-(?=\d{{4}}\b)")
MONTH_RANGE = re.compile(rf"\b({ANY_MONTH})\.?\s?-\s?({ANY_MONTH})\.?(?![\w])")
STREETS = {"St": "street", "Ave": "avenue", "Rd": "road", "Blvd": "boulevard", "Ln": "lane", "Hwy": "highway"}
STREET = re.compile(rf"(?<=[a-z] )({'|'.join(STREETS)})(?=,|;|\.?$|\s[NS][EW]?\b)")
# After the number and the name of a street, or before a word that begins a sentence, "St." is no saint.
ADDRESS_STREET = re.compile(r"(?<=\d )((?:[NSEW]\.? )?(?:[A-Z][a-z]+|\d+(?:st|nd|rd|th)) )St\.")
STREET_END = re.compile(rf"(?<=[a-z] )St\.(?=\s+(?:{STARTERS})\b)")
DIRECTION = re.compile(rf"\b([NESW])\.?(?=\s(?:[A-Z][a-z]+|\d+(?:st|nd|rd|th))\s(?:{'|'.join(STREETS)})\b)")
DOT = re.compile(r"(?<=\w)\.(?:([a-z]{2})(?![\w.])|(?=[A-Za-z]))")  # within a name such as "bbc.co.uk"
SPOKEN_DOMAINS = set("co me to so it be in no at is".split())  # two-letter domains read as words


def normalise(text: str, characters: str) -> str:
    """Convert `text` to lower-case words and punctuation in `characters`, with single spaces; it may become empty."""
    is_shouted = not any(map(str.islower, text))
    text = spell_identifiers(in_ascii(text))
    text = write_out(_expand(read_numerals(_compare(text))))
    text = name_letters(spell_acronyms(name_units(DOT.sub(_dot, text)), is_shouted))
    return _reduce(_name_symbols(text).lower(), characters)


def in_ascii(text: str) -> str:
    """Convert `text` to ASCII and the characters in KEPT; the result may be several times as long."""
    text = CUT_WORD.sub(_joined, text)
    text = plain_notation(without_faces(MICRO.sub("µ", text)))
    text = LONE_DEGREES.sub(" ", text)
    return _ascii(GREEK_SYMBOL.sub(_greek_name, unicodedata.normalize("NFC", text)))


def words_of(normalised: str) -> tuple[str, ...]:
    """Return the words of a normalised text, in order, without punctuation."""
    return tuple(re.findall(r"[a-z](?:[a-z']*[a-z])?", normalised))


def _joined(match: re.Match[str]) -> str:
    joined = joins(match.group(1), match.group(2))
    return match.group() if joined is None else f"{match.group(1)}{joined}{match.group(2)}"


def _dot(match: re.Match[str]) -> str:
    end = match.group(1) or ""
    return f" dot {end if end in SPOKEN_DOMAINS else spell(end)}"


def _greek_name(match: re.Match[str]) -> str:
    """Return the name of a Greek letter between spaces, e.g. " pi "; accented letters are unchanged."""
    name = unicodedata.name(match.group(), "")
    is_plain = name.startswith("GREEK") and " WITH " not in name
    return f" {name.rpartition(' ')[2].lower()} " if is_plain else match.group()


def _ascii(text: str) -> str:
    def ascii_of(character: str) -> str:
        if character in SYMBOLS or character in KEPT:
            return SYMBOLS.get(character, character)
        if character.isspace():
            return " "
        category = unicodedata.category(character)
        if category == INVISIBLE:
            return ""
        if category in DROPPED:
            return " "
        plain: str = anyascii(character)
        # Other signs become letters and signs that only look like them: † is not a plus sign, and ↓ not a v.
        is_lookalike = category in SIGN_CATEGORIES and PUNCTUATION.fullmatch(plain) is None
        if not is_lookalike or character.isascii():
            return plain
        if category == "Sc":
            return f" {unicodedata.name(character).lower().removesuffix(' sign')} "
        return plain if unicodedata.normalize("NFKC", character) == plain else " "

    # NFC comes first, so that a letter and its combining accent are a single character for anyascii.
    return "".join(map(ascii_of, unicodedata.normalize("NFC", text)))


def _expand(text: str) -> str:
    text = SENTENCE_END.sub(r"\g<0>.", text)  # the first full stop belongs to the abbreviation
    text = re.sub(r"(?<![^\s(])\.(?=[A-Za-z])", " dot ", text)
    text = re.sub(r"(?<![A-Za-z])A-?(?=\d)", lambda match: spell("A"), text)
    text = re.sub(r"\bPh(?:\.\s?)?D(s?)\b\.?", lambda match: spell("PHD", match.group(1)), text)
    text = re.sub(r"\bAD(?=\s\d)|(?<=\d )AD\b", spell("AD"), text)
    text = re.sub(rf"([{SIGNS}])\.(?=\d)", r"\g<1>0.", text)
    text = re.sub(r"\bpH\b", spell("PH"), text)
    text = re.sub(r"\ba\.\s?k\.\s?a\.", "also known as", text, flags=re.IGNORECASE)
    text = re.sub(r"((?<![A-Za-z])ft\.?\s+\d{1,2})\s?in\b\.?", r"\1 in.", text)
    text = re.sub(r"\bw/o\b", "without", text)
    text = re.sub(r"\b[wW]/(?=\s)|\bw/(?=[a-z])", "with ", text)
    text = re.sub(r"\b([A-G])#", r"\1 sharp", text)
    text = re.sub(r"#(?=[A-Za-z])", " hashtag ", text)
    text = HYPHENED_DATE.sub(lambda match: f"{match.group(1)} {_month(match.group(2))} ", text)
    text = MONTH_RANGE.sub(lambda match: f"{_month(match.group(1))} to {_month(match.group(2))}", text)
    text = WEEKDAY_RANGE.sub(lambda match: f"{WEEKDAYS[match.group(1)]} to {WEEKDAYS[match.group(2)]}", text)
    text = WEEKDAY.sub(lambda match: WEEKDAYS[match.group().rstrip(".")], text)
    text = DIRECTION.sub(lambda match: DIRECTIONS[match.group(1)], text)
    text = STREET.sub(lambda match: STREETS[match.group()], text)
    text = re.sub(r"\bHwy\.?(?=\s+\d)", "Highway", text)
    text = re.sub(r"\bvs\b\.?|(?<=[a-z] )v\.?(?= [A-Z])|(?<=\d )v(?= \d)", "versus", text)
    text = NUMBERED_ABBREVIATION.sub(lambda match: f"{BEFORE_NUMBERS[match.group(1).lower()]} ", text)
    text = re.sub(r"\be\.\s?g\.", "for example", text, flags=re.IGNORECASE)
    text = re.sub(r"\bi\.\s?e\.", "that is", text, flags=re.IGNORECASE)
    text = STREET_END.sub("street.", ADDRESS_STREET.sub(r"\1street", text))
    text = re.sub(r"\bSt\.(?=\s+[A-Z])", "Saint", text)
    text = re.sub(r"(?<!\d)(?<!\d\s)\b[Mm]in\.(?=\s?\d)", "minimum", text)
    text = re.sub(r"\b[Ss]t\.(?=\s+[a-z])", "street", text)
    text = re.sub(r"\bst(?:\.(?=,)|(?=\.))", "street", text, flags=re.IGNORECASE)
    text = re.sub(r"(?:\bno\.\s?|#\s?)(?=\d)", " number ", text, flags=re.IGNORECASE)
    text = MONTH_ABBREVIATION.sub(lambda match: MONTHS[match.group().rstrip(".").lower()], text)
    text = ABBREVIATION.sub(lambda match: ABBREVIATIONS[match.group(1).lower()], text)
    text = TITLE.sub(lambda match: ABBREVIATIONS[match.group(1).lower()], text)
    # After a digit, "a.m." and "p.m." belong to the time.
    return DOTTED.sub(
        lambda match: (
            match.group()
            if AFTER_DIGIT.search(text, max(0, match.start() - 2), match.start())
            else spell(match.group())
        ),
        text,
    )


def _month(name: str) -> str:
    return MONTHS.get(name.lower(), name)


COMPARISONS = (  # in this order, because the first ones contain others
    (re.compile(r"<=>|<->|<-|->|=>(?!\s?\d)|>>+|<<+"), ", "),
    (re.compile(r"(?<![=!<>])(?:!=|=/=)"), " is not equal to "),
    (re.compile(r"<="), " less than or equal to "),
    (re.compile(r">=|=>"), " greater than or equal to "),
    (re.compile(r"==+"), " equals "),
    # Other brackets are quotes in mails, or tags.
    (re.compile(r"(?<=[\w)])\s?<\s|(?<=\s)<\s|(?:(?<=\s)|^|(?<=\w))<(?=[$-]?\.?\d)|(?<=\d)<(?=\w)"), " less than "),
    (re.compile(r"(?<=[\w)])\s>\s|(?:(?<=\s)|^|(?<=\w))>(?=[$-]?\.?\d)|(?<=\d)>(?=\w)"), " greater than "),
    (re.compile(r"~\s?(?=[$]?\.?\d)"), " about "),
    (re.compile(r"(?<=\s)~(?=\s)"), " approximately "),
)


def _compare(text: str) -> str:
    """Replace comparison signs with words, e.g. "x >= 5" → "x greater than or equal to 5"."""
    for pattern, words in COMPARISONS:
        text = pattern.sub(words, text)
    return text


def _name_symbols(text: str) -> str:
    text = re.sub(r"\b[Oo][Kk]\b", "okay", text)
    text = re.sub(r"\bhttps?://(?:www\.)?", "", text)
    for symbol, name in {
        "&": "and",
        "@": "at",
        "+": "plus",
        "=": "equals",
        "%": "percent",
        "°": "degrees",
        "¢": "cents",
        "#": "hash",
        **{sign: names[1] for sign, names in CURRENCIES.items()},
    }.items():
        text = text.replace(symbol, f" {name} ")
    text = re.sub(r"\s-+\s", ", ", text)
    text = text.replace(";", ".")
    return re.sub(r"[:()\[\]{}]", ",", text)


def _reduce(text: str, characters: str) -> str:
    if "!" not in characters:
        text = text.replace("!", ".")
    text = "".join(character if character in characters else " " for character in text)
    text = re.sub(r"(?<![a-z])'|'(?![a-z])", " ", text)  # keep apostrophes only inside words
    text = re.sub(r"\s*([.,?!])", r"\1", re.sub(r" +", " ", text))
    text = re.sub(r"[.,?!]{2,}", lambda match: max(match.group(), key=",.!?".index), text)
    text = re.sub(r"([.,?!])(?=[a-z])", r"\1 ", text).strip(" ,")
    return re.sub(r"^[.,?! ]+", "", text)
