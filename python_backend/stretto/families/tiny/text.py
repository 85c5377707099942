"""Normalisation of any text to words in a small English alphabet, for families without a subword tokenizer."""

import re
import unicodedata

from anyascii import anyascii

from stretto.families.tiny.letters import SHORT_WORDS, is_spelled, name_letters, spell, spell_acronyms
from stretto.families.tiny.numbers import (
    CURRENCIES,
    MONTH,
    MONTH_NAMES,
    SIGNS,
    cardinal,
    digits,
    name_units,
    number,
    ordinal,
    write_out,
    year,
)

# Characters whose meaning would be lost in ASCII.
SYMBOLS = {
    "×": " times ", "÷": " divided by ", "±": " plus or minus ", "…": ". ", "—": ", ", "–": "-", "−": "-",
    "²": " squared ", "³": " cubed ", "½": " 1/2 ", "⅓": " 1/3 ", "⅔": " 2/3 ", "¼": " 1/4 ", "¾": " 3/4 ",
    "℃": "°C", "℉": "°F", "µ": "micro", "μ": "micro", "№": " number ", "≈": "~", "≤": "<=", "≥": ">=", "≠": "!=",
    "→": " to ", "√": " square root of ", "∞": " infinity ", "‰": " per mille ", "∶": ":", "＜": "<", "＞": ">",
    "\u200b": " ",  # a possible line break between words of scripts without spaces
    **dict.fromkeys("`´ʹˈꞌ‛‘’ʼ′＇", "'"),  # keyboards differ in their apostrophes
}  # fmt: skip
KEPT = f"{SIGNS}¢°^"  # read by RULES
INVISIBLE = "Cf"  # category of soft hyphens, joiners and marks of direction, which do not end a word
DROPPED = {"So", "Sk", "Cs", "Co", "Cn", "Cc"}  # emoji, lone accents, surrogates, controls
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
ROMAN_NUMERALS = {
    f"{tens}{units}": 10 * ten + unit
    for ten, tens in enumerate(("", "X", "XX", "XXX", "XL", "L"))
    for unit, units in enumerate(("", "I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"))
    if tens or units
}
REIGNED = set(  # a numeral after one of these names is an ordinal: "Henry the eighth"
    "Henry Louis Charles George Edward William James Richard Elizabeth Mary John Paul Pius Benedict Francis Philip "
    "Philippe Frederick Friedrich Wilhelm Nicholas Alexander Catherine Ivan Peter Napoleon Leo Gregory Urban Innocent "
    "Clement Ramses Ramesses Margrethe Carl Karl Gustav Haakon Harald Olav Christian Albert Leopold Ferdinand Alfonso "
    "Felipe Juan Pedro Ptolemy Darius Xerxes Cyrus Robert Stephen Edmund Sixtus Boniface Constantine Otto "
    "Joseph Rudolf Maximilian Victor Umberto Abdullah Hussein Hassan Mohammed Selim Murad Mehmed Rama Willem".split()
)
NUMBERED = set(  # a numeral after one of these words is a count: "Chapter four"
    "Chapter Part Volume Book Act Scene Section Article Appendix Figure Table Title Type Phase Stage Level Class Grade "
    "Mark War Bowl Apollo Rocky Fantasy Division Group Category Factor Olympiad Canto Verse Unit Lesson".split()
)
SCRIPTS = {  # keyed by the first word of a letter's Unicode name; for other scripts, messages contain that word
    "CJK": "Chinese characters", "IDEOGRAPHIC": "Chinese characters", "HIRAGANA": "Japanese letters",
    "KATAKANA": "Japanese letters", "KATAKANA-HIRAGANA": "Japanese letters", "HANGUL": "Korean letters",
    "DEVANAGARI": "Devanagari letters (Hindi and others)", "CYRILLIC": "Cyrillic letters (Russian and others)",
}  # fmt: skip
LATIN = {"LATIN", "MODIFIER"}  # the latter: ʻokina and the like
MICRO = re.compile(r"(?<=[\d\s])μ(?=[gmls]\b)")  # the Greek letter before a unit
GREEK_SYMBOL = re.compile(r"(?<![Ͱ-Ͽἀ-῿])[Α-ω](?![Ͱ-Ͽἀ-῿])")  # a single letter is a symbol, as in "π" or "Δt"

# After a number, "ms." is a unit, and "col." or "gen." no title.
ABBREVIATION = re.compile(rf"(?<!\d)(?<!\d\s)\b({'|'.join(ABBREVIATIONS)})\.", re.IGNORECASE)
TITLE = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof)(?=\s+[A-Z])")
MONTH_ABBREVIATION = re.compile(rf"\b({'|'.join(MONTHS)})\.?(?=\s+\d)|(?<=\d )({'|'.join(MONTHS)})\b\.?", re.IGNORECASE)
DOTTED = re.compile(r"\b(?:[A-Za-z]\.){2,}(?:[A-Za-z]\b)?|\b(?:[A-Z]\.)(?=\s+[A-Z])")
AFTER_DIGIT = re.compile(r"\d\s?\Z")
NUMBERED_ABBREVIATION = re.compile(rf"\b({'|'.join(BEFORE_NUMBERS)})\.\s?(?=\d)", re.IGNORECASE)
# "Mon", "Wed", "Sat" and "Sun" are also words, so they need a date or time after them, or another day in a range.
DAYS = "Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun"
DATED = rf",?\s+(?:{'|'.join(month.title() for month in MONTHS)}|{MONTH})\b|,?\s+\d"
WEEKDAY = re.compile(
    rf"\b(?:(Mon|Wed)\.|(Tues?|Thu(?:rs?)?|Fri)\b\.?|(Sat|Sun)\.(?={DATED})|(Mon|Wed|Sat|Sun)\b(?={DATED}))"
)
WEEKDAY_RANGE = re.compile(rf"\b({DAYS})\.?\s?-\s?({DAYS})\b\.?")
ANY_MONTH = "|".join([*MONTH_NAMES, *(f"{month.title()}\\b" for month in MONTHS)])
HYPHENED_DATE = re.compile(rf"\b(\d{{1,2}})-({ANY_MONTH})-(?=\d{{4}}\b)")
MONTH_RANGE = re.compile(rf"\b({ANY_MONTH})\.?\s?-\s?({ANY_MONTH})\.?(?![\w])")
STREETS = {"St": "street", "Ave": "avenue", "Rd": "road", "Blvd": "boulevard", "Ln": "lane", "Hwy": "highway"}
STREET = re.compile(rf"(?<=[a-z] )({'|'.join(STREETS)})(?=,|;|\.?$|\s[NS][EW]?\b)")
DIRECTIONS = {"N": "north", "E": "east", "S": "south", "W": "west"}
DIRECTION = re.compile(rf"\b([NESW])\.?(?=\s(?:[A-Z][a-z]+|\d+(?:st|nd|rd|th))\s(?:{'|'.join(STREETS)})\b)")
NUMERAL = re.compile(r"\b([A-Z][a-z]+)((?:\s+[A-Z][a-z]+)?)\s+([XLVI]+)\b(?!['’]\w{2}|\.[A-Z])")
NO_PRONOUN = re.compile(r"$|[.,;:!?)]|\s+of\b|'s\b")  # after "Elizabeth I"
WORLD_WAR = re.compile(r"\bWW(I{1,3})\b")

# Addresses. They may not end with the punctuation of the surrounding sentence.
EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,63}")
URL = re.compile(r"\b(?:(?:https?|ftp)://|www\.)[^\s<>\"]+|(?<![\w.-])(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,63}/[^\s<>\"]*")
IN_ADDRESSES = {
    ".": "dot", "/": "slash", "-": "dash", "_": "underscore", ":": "colon", "?": "question mark", "=": "equals",
    "&": "and", "#": "hash", "~": "tilde", "%": "percent", "+": "plus", "@": "at",
}  # fmt: skip
DOT = re.compile(r"(?<=\w)\.(?:([a-z]{2})(?![\w.])|(?=[A-Za-z]))")  # within a name such as "bbc.co.uk"
SPOKEN_DOMAINS = set("co me to so it be in no at is".split())  # two-letter domains read as words


def normalise(text: str, characters: str) -> str:
    """Convert `text` to lower-case words and punctuation in `characters`, with single spaces.

    The result is empty if nothing can be spoken.
    """
    is_shouted = not any(map(str.islower, text))
    text = write_out(_expand(_number_names(_compare(_spell_addresses(in_ascii(text))))))
    text = name_letters(spell_acronyms(name_units(DOT.sub(_dot, text)), is_shouted))
    return _reduce(_name_symbols(text).lower(), characters)


def in_ascii(text: str) -> str:
    """Convert `text` to ASCII and the characters in KEPT; the result may be several times as long."""
    text = MICRO.sub("µ", text)
    return _ascii(GREEK_SYMBOL.sub(_greek_name, unicodedata.normalize("NFC", text)))


def words_of(normalised: str) -> tuple[str, ...]:
    """Return the words of a normalised text, in order, without punctuation."""
    return tuple(re.findall(r"[a-z](?:[a-z']*[a-z])?", normalised))


def other_script(text: str) -> tuple[str, str] | None:
    """Return the first script in `text` that an English voice cannot read, and the first word in it.

    Return None if there is no such script.
    Latin letters with any accents are readable, and so is a single Greek letter used as a symbol.
    """
    for word in text.split():
        for character in filter(str.isalpha, GREEK_SYMBOL.sub("", unicodedata.normalize("NFKC", word))):
            script = unicodedata.name(character, "UNKNOWN").partition(" ")[0]
            if script not in LATIN:
                return SCRIPTS.get(script, f"{script.capitalize()} letters"), word
    return None


def _dot(match: re.Match[str]) -> str:
    end = match.group(1) or ""
    return f" dot {end if end in SPOKEN_DOMAINS else spell(end)}"


def _greek_name(found: re.Match[str]) -> str:
    """Return the name of a Greek letter between spaces, e.g. " pi "; accented letters are unchanged."""
    name = unicodedata.name(found.group(), "")
    is_plain = name.startswith("GREEK") and " WITH " not in name
    return f" {name.rpartition(' ')[2].lower()} " if is_plain else found.group()


def _ascii(text: str) -> str:
    def ascii_of(character: str) -> str:
        if character in SYMBOLS or character in KEPT:
            return SYMBOLS.get(character, character)
        if character.isspace():
            return " "
        category = unicodedata.category(character)
        return "" if category == INVISIBLE else " " if category in DROPPED else anyascii(character)

    # NFC comes first, so that a letter and its combining accent are a single character for anyascii.
    return "".join(map(ascii_of, unicodedata.normalize("NFC", text)))


def _spell_addresses(text: str) -> str:
    """Replace e-mail addresses and URLs with words, e.g. "x.org/a_b" → "x dot org slash a underscore b"."""
    return URL.sub(_address, EMAIL.sub(_address, text.replace("mailto:", "")))


def _address(match: re.Match[str]) -> str:
    address = match.group().rstrip(".,;:!?'\")]}")
    rest = match.group()[len(address) :]
    plain = re.sub(r"^(?:https?|ftp)://(?:www\.)?", "", address).rstrip("/")
    words = re.findall(r"[A-Za-z]+|\d+|[^A-Za-z\d]", plain)
    return f" {' '.join(map(_address_word, words, [*words[-1:], *words]))}{rest} "


def _address_word(word: str, previous: str) -> str:
    if word.isdigit():
        is_year = len(word) == 4 and word[:2] in ("19", "20")
        return year(int(word)) if is_year else number(word) if len(word) <= 2 else digits(word)
    if not word.isalpha():
        return IN_ADDRESSES.get(word, " ")
    is_country = previous == "." and len(word) == 2 and word.lower() not in SPOKEN_DOMAINS
    return spell(word) if is_country or len(word) == 1 or is_spelled(word) else word


def _number_names(text: str) -> str:
    """Replace Roman numerals after names and titles, e.g. "Henry VIII" → "Henry the eighth", "Part II" → "Part two"."""

    def spoken(match: re.Match[str]) -> str:
        first, second, numeral = match.group(1), match.group(2).strip(), match.group(3)
        name, count = second or first, ROMAN_NUMERALS.get(numeral)
        if count is None or (name.lower() in SHORT_WORDS and name not in NUMBERED):
            return match.group()
        before = match.group()[: -len(numeral)]
        if name in NUMBERED:
            return f"{before}{cardinal(count)}"
        # "Elizabeth I was told" may refer to two people.
        is_pronoun = numeral == "I" and not NO_PRONOUN.match(match.string, match.end())
        if name in REIGNED and not is_pronoun:
            return f"{before}the {ordinal(count)}"
        if len(numeral) == 1 or numeral in ("XL", "XX", "LI", "LV", "LX", "XI"):  # initials, sizes, other names
            return match.group()
        return f"{before}the {ordinal(count)}" if second and count <= 3 else f"{before}{cardinal(count)}"

    return NUMERAL.sub(spoken, WORLD_WAR.sub(lambda match: f"World War {cardinal(len(match.group(1)))}", text))


def _expand(text: str) -> str:
    text = re.sub(r"(?<![^\s(])\.(?=[A-Za-z])", " dot ", text)
    text = re.sub(r"(?<![A-Za-z])A-?(?=\d)", lambda match: spell("A"), text)
    text = re.sub(r"\bPh(?:\.\s?)?D(s?)\b\.?", lambda match: spell("PHD", match.group(1)), text)
    text = re.sub(r"\bpH\b", spell("PH"), text)
    text = re.sub(r"\ba\.\s?k\.\s?a\.", "also known as", text, flags=re.IGNORECASE)
    text = re.sub(r"((?<![A-Za-z])ft\.?\s+\d{1,2})\s?in\b\.?", r"\1 in.", text)
    text = re.sub(r"\bw/o\b", "without", text)
    text = re.sub(r"\b[wW]/(?=\s|[a-z])", "with ", text)
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
    text = re.sub(r"\bSt\.(?=\s+[A-Z])", "Saint", text)
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
