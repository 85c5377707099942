"""Normalisation of any text to words in a small English alphabet, for families without a subword tokenizer."""

import re
import unicodedata
from collections.abc import Callable
from functools import partial

from anyascii import anyascii
from num2words import num2words

NUMBER = r"(?:\d{1,3}(?:,\d{3}){1,8}(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?)"
MAX_COUNT_DIGITS = 15  # a longer number is read digit by digit
MONTH_NAMES = "January February March April May June July August September October November December".split()
# Lower-case "may" and "march" are verbs more often than months.
MONTH = "|".join(
    name if name in ("May", "March") else f"[{name[0]}{name[0].lower()}]{name[1:]}" for name in MONTH_NAMES
)
YEAR_CUES = "circa|in|since|from|until|till|by|before|after|during|year|spring|summer|autumn|fall|winter"
CURRENCIES = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "pence"), "¥": ("yen", "")}
SCALES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion", "tn": "trillion"}  # in amounts: $3M
WITH_SLASHES = {"24/7": "twenty four seven", "9/11": "nine eleven", "50/50": "fifty fifty"}
MAX_DENOMINATOR = 16  # 3/16 is "three sixteenths", 3/17 is "three over seventeen"
UNITS = {
    "km": "kilometers", "m": "meters", "cm": "centimeters", "mm": "millimeters", "mi": "miles", "ft": "feet",
    "kg": "kilograms", "g": "grams", "mg": "milligrams", "lb": "pounds", "lbs": "pounds", "oz": "ounces",
    "l": "liters", "ml": "milliliters", "h": "hours", "hr": "hours", "hrs": "hours", "min": "minutes",
    "mins": "minutes", "s": "seconds", "sec": "seconds", "secs": "seconds", "ms": "milliseconds",
    "mph": "miles per hour", "km/h": "kilometers per hour", "kph": "kilometers per hour", "hz": "hertz",
    "khz": "kilohertz", "mhz": "megahertz", "ghz": "gigahertz", "kb": "kilobytes", "mb": "megabytes",
    "gb": "gigabytes", "tb": "terabytes", "w": "watts", "kw": "kilowatts", "kwh": "kilowatt hours", "v": "volts",
    "m/s": "meters per second", "rpm": "revolutions per minute", "mpg": "miles per gallon", "fps": "frames per second",
    "kbps": "kilobits per second", "mbps": "megabits per second", "gbps": "gigabits per second",
    "mah": "milliamp hours", "db": "decibels", "px": "pixels", "yd": "yards", "kcal": "kilocalories", "in.": "inches",
    "°c": "degrees celsius", "°f": "degrees fahrenheit", "°": "degrees",
}  # fmt: skip
SINGULAR = {"feet": "foot", "hertz": "hertz", "kilohertz": "kilohertz", "megahertz": "megahertz"}


def cardinal(count: int) -> str:
    """Return a count as words, e.g. 1234 → "one thousand two hundred and thirty four"."""
    return num2words(count).replace("-", " ").replace(",", "")


def ordinal(count: int) -> str:
    """Return an ordinal as words, e.g. 21 → "twenty first"."""
    return num2words(count, to="ordinal").replace("-", " ").replace(",", "")


def year(count: int) -> str:
    """Return a year as words, e.g. 1984 → "nineteen eighty four"."""
    return num2words(count, to="year").replace("-", " ").replace(",", "")


def digits(text: str) -> str:
    """Return the digits as words, e.g. "007" → "zero zero seven"; other characters are skipped."""
    return " ".join(cardinal(int(digit)) for digit in text if digit.isdigit())


def number(text: str) -> str:
    """Return a number as words, e.g. "1,234.50" → "one thousand two hundred and thirty four point five zero"."""
    whole, _, decimals = text.replace(",", "").partition(".")
    by_digit = len(whole) > MAX_COUNT_DIGITS or (len(whole) > 1 and whole[0] == "0")
    words = digits(whole) if by_digit else cardinal(int(whole))
    return f"{words} point {digits(decimals)}" if decimals else words


def clock(hours: int, minutes: int, suffix: str) -> str:
    """Return a time as words, e.g. 9, 20 → "nine twenty"; 9, 5 → "nine oh five"; 9, 0 → "nine o'clock"."""
    if minutes == 0 and not suffix:
        return f"{cardinal(hours)} o'clock" if hours <= 12 else f"{cardinal(hours)} hundred"
    spoken = f"{'oh ' if minutes < 10 else ''}{cardinal(minutes)}" if minutes else ""
    return f"{cardinal(hours)} {spoken} {suffix}"


def code(text: str) -> str:
    """Read digits as in a flight or house number, e.g. "2490" → "twenty four ninety"; "105" → "one oh five"."""
    if not 3 <= len(text) <= 4 or text[0] == "0":
        return digits(text)
    head, tail = text[:-2], text[-2:]
    if tail == "00":
        return cardinal(int(text)) if int(head) % 10 == 0 else f"{cardinal(int(head))} hundred"
    return f"{cardinal(int(head))} {'oh ' if tail[0] == '0' else ''}{cardinal(int(tail))}"


def _time(match: re.Match[str]) -> str:
    hours, minutes, seconds, half_day = match.groups()
    suffix = f"{half_day.lower()} m" if half_day else ""
    if int(hours) > 24 or int(minutes or 0) > 59 or int(seconds or 0) > 59:
        return " ".join(cardinal(int(part)) for part in (hours, minutes, seconds) if part) + f" {suffix}"
    spoken = clock(int(hours), int(minutes or 0), suffix)
    return f"{spoken} and {quantity(seconds, 'seconds')}" if seconds else spoken


def quantity(count: str, unit: str) -> str:
    """Return a count with its unit as words, e.g. "1", "kilometers per hour" → "one kilometer per hour"."""
    if count == "1":
        noun, _, rest = unit.partition(" ")
        unit = f"{SINGULAR.get(noun, noun.removesuffix('s'))} {rest}".strip()
    return f"{number(count)} {unit}"


def _money(match: re.Match[str]) -> str:
    symbol, amount, scale = match.group("symbol"), match.group("amount"), match.group("scale") or match.group("letter")
    unit, part = CURRENCIES[symbol]
    units = unit if unit == "yen" else f"{unit}s"
    if scale:
        return f"{number(amount)} {SCALES.get(scale.lower(), scale)} {units}"
    whole, _, cents = amount.partition(".")
    if not part or len(cents) != 2 or cents == "00":
        return quantity(amount if cents.strip("0") else whole, units)
    small = f"{cardinal(int(cents))} {part}{'s' if part == 'cent' and cents != '01' else ''}"
    return small if whole == "0" else f"{quantity(whole, units)} and {small}"


def _date(day: str, month: str, year_text: str | None, order: str) -> str:
    spoken = order.format(day=ordinal(int(day)), month=month)
    return f"{spoken}, {year(int(year_text))}" if year_text else spoken


def _iso_date(match: re.Match[str]) -> str:
    year_text, month, day = match.groups()
    return _date(day, MONTH_NAMES[int(month) - 1], year_text, "{month} the {day}")


def _slashed_date(match: re.Match[str]) -> str:
    first, second, year_text = match.groups()
    # As in the United States, the month comes first, unless the number cannot be a month.
    month, day = (first, second) if int(first) <= 12 else (second, first)
    if int(month) > 12:
        return " over ".join(map(number, match.groups()))
    if len(year_text) == 2:
        year_text = f"{20 if int(year_text) < 50 else 19}{year_text}"
    return _date(day, MONTH_NAMES[int(month) - 1], year_text, "{month} {day}")


def _dotted_date(match: re.Match[str]) -> str:
    day, month, year_text = match.groups()
    return _date(day, MONTH_NAMES[int(month) - 1], year_text, "{month} {day}")


def _fraction(match: re.Match[str]) -> str:
    over, under = int(match.group(1)), int(match.group(2))
    if match.group() in WITH_SLASHES:
        return WITH_SLASHES[match.group()]
    if under in (10, 100):
        return f"{number(match.group(1))} out of {number(match.group(2))}"
    if not 0 < over < under <= MAX_DENOMINATOR:
        return f"{number(match.group(1))} over {number(match.group(2))}"
    part = {2: "half", 4: "quarter"}.get(under) or ordinal(under)
    return f"{cardinal(over)} {part}{'s' if over > 1 else ''}"


def _decade(match: re.Match[str]) -> str:
    text = match.group(1)
    words = year(int(text)) if len(text) == 4 else cardinal(int(text))
    return _plural(words)


def _plural(words: str) -> str:
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}es" if words.endswith("x") else f"{words}s"


def _plain(match: re.Match[str]) -> str:
    text = match.group()
    return number(text) if text.count(".") < 2 else " point ".join(map(number, text.split(".")))


# A number of three or four digits after one of these words is read as a code: "Room one oh five".
CODED = (
    r"Boeing|Airbus|[Rr]oom|[Ff]light|[Ss]uite|[Aa]partment|[Rr]oute|[Hh]ighway|[Bb]us|[Tt]rain|[Gg]ate|[Ee]xtension"
)
Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]
DAY = r"(0?[1-9]|[12]\d|3[01])"
HALF_DAY = r"\s?[AaPp](?:\.\s?[Mm]\.|[Mm]\b)"
# A time or an amount of money, and the hyphen between it and a second one.
RANGE = re.compile(
    rf"(?<![\d:])\d{{1,2}}(?::\d\d(?:{HALF_DAY})?|{HALF_DAY})\s?-\s?(?=\d{{1,2}}(?::\d\d|{HALF_DAY}))"
    rf"|(?<!\d)(?<!\d\.)[$€£¥]{NUMBER}[kKmMbB]?\s?-\s?(?=[$€£¥]\d)"
)
AMOUNT = rf"(?P<amount>{NUMBER})(?:\s?(?P<scale>thousand|million|billion|trillion)|(?P<letter>[kKmMbB]|bn|tn)\b)?"
RULES: tuple[Rule, ...] = (
    (re.compile(r"\b(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])(?![\d-])"), _iso_date),
    (re.compile(rf"(?<![\d/.]){DAY}/{DAY}/(\d{{4}}|\d\d)(?![\d/])"), _slashed_date),
    (re.compile(rf"(?<![\d.,]){DAY}\.(0?[1-9]|1[0-2])\.(1[1-9]\d\d|20\d\d)(?![\d.]\d|\d)"), _dotted_date),
    (re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"),
     lambda match: " dot ".join(map(digits, match.group().split(".")))),
    (re.compile(r"(?<![\w.])\.(\d+)"), lambda match: f"zero point {digits(match.group(1))}"),
    (re.compile(r"\b([A-Z][A-Za-z]*-)(\d{1,4})s\b"),
     lambda match: f"{match.group(1)} {_plural(number(match.group(2)))}"),
    (re.compile(rf"\b({CODED})\s+(\d{{3,4}})(?:-(\d{{3,4}}))?\b(?![.,:]\d)"),
     lambda match: f"{match.group(1)} {code(match.group(2))} {code(match.group(3) or '')}"),
    (re.compile(r"(?<!\d)(\d{3,4})\s?x\s?(\d{3,4})(?!\d)"),
     lambda match: f"{code(match.group(1))} by {code(match.group(2))}"),
    (re.compile(r"(\d\s?(?:cm|mm|m|km|in\.|ft|px))\s+x\s+(?=\d)"), lambda match: f"{match.group(1)} by"),
    (re.compile(r"\b(\d)' ?(\d{1,2})(?:\"|'')"),
     lambda match: f"{quantity(match.group(1), 'feet')} {cardinal(int(match.group(2)))}"),
    (re.compile(r"\b([A-Za-z]+-?)(\d{3,4})\b(?![.,:]\d)"), lambda match: f"{match.group(1)} {code(match.group(2))}"),
    (re.compile(r"(?<![\d.,$€£¥])(\d{3,4})([A-Z])\b"), lambda match: f"{code(match.group(1))} {match.group(2)}"),
    (re.compile(r"\(\d{3}\)\s?\d{3}[ .-]\d{4}(?!\d)"), lambda match: digits(match.group())),
    (re.compile(r"(?<![\d.,])\+?(?:\d{1,3}[ -])?\d{3}[ .-]\d{3,4}[ .-]\d{4}(?!\d)|(?<![\d.,-])\d{3}-\d{4}(?![\d-])"),
     lambda match: digits(match.group())),
    (re.compile(r"\+\d[\d ()-]{6,}\d"), lambda match: f"plus {digits(match.group())}"),
    (re.compile(r"(?<![\w.-])\d+(?:-\d+){2,}(?![\w-])"),
     lambda match: ", ".join(map(digits, match.group().split("-")))),
    (RANGE, lambda match: f"{match.group()[:-1]} to"),
    (re.compile(r"(?<![\d.,:])(\d{1,2})-(?=\d{1,2}(?::\d\d)?\s?[AaPp]\.?\s?[Mm]\b)"),
     lambda match: f"{match.group(1)} to"),
    (re.compile(r"\b(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\s?([AaPp])(?:\.\s?[Mm]\.?|[Mm]\b))?(?![\d:])"), _time),
    (re.compile(r"\b(\d{1,2})()()\s?([AaPp])(?:\.\s?[Mm]\.?|[Mm]\b)"), _time),
    (re.compile(rf"(?P<symbol>[$€£¥])\s?{AMOUNT}(?!\d)"), _money),
    (re.compile(rf"(?<![\d.]){AMOUNT}\s?(?P<symbol>[€£¥])"), _money),
    (re.compile(rf"(?<![\d.])({NUMBER})\s?¢"), lambda match: quantity(match.group(1), "cents")),
    (re.compile(r"(?<=\d)\^(?=\d)"), lambda match: " to the power of "),
    (re.compile(rf"\b({MONTH})\s+{DAY}(?:st|nd|rd|th)?(?![\d:.,]\d|\d)(?:,?\s+(\d{{4}})\b)?"),
     lambda match: _date(match.group(2), match.group(1), match.group(3), "{month} {day}")),
    (re.compile(rf"\b{DAY}(?:st|nd|rd|th)?\s+(?:of\s+)?({MONTH})\b(?:,?\s+(\d{{4}})\b)?"),
     lambda match: _date(match.group(1), match.group(2), match.group(3), "{day} of {month}")),
    (re.compile(r"\b(\d{1,15})(?:st|nd|rd|th)\b"), lambda match: ordinal(int(match.group(1)))),
    (re.compile(r"'?\b(\d{3}0|[2-9]0)s\b"), _decade),
    (re.compile(rf"\b({YEAR_CUES}|Q[1-4]|{MONTH})(,?\s+)(1[1-9]\d\d|20\d\d)(?![\d,:/]\d|\d|\.\d|\s?[%°])",
                re.IGNORECASE),
     lambda match: f"{match.group(1)}{match.group(2)}{year(int(match.group(3)))}"),
    (re.compile(r"\b(1[1-9]\d\d|20\d\d)\s?-\s?(1[1-9]\d\d|20\d\d)(?![\d-])"),
     lambda match: f"{year(int(match.group(1)))} to {year(int(match.group(2)))}"),
    (re.compile(r"(?<=\d)\s+(?=(?:1/[234]|2/3|3/4|[1357]/8)(?![\d/]))"), lambda match: " and "),
    (re.compile(r"(?<![\d./])(\d{1,3})/(\d{1,3})(?![\d/])"), _fraction),
    (re.compile(r"(?<![\d:])(\d{1,4}):(\d{1,4})(?![\d:])"),
     lambda match: f"{number(match.group(1))} to {number(match.group(2))}"),
    (re.compile(r"(?<=\d)k\b"), lambda match: " thousand "),
    (re.compile(r"(?<=\d)x(?=\d)"), lambda match: " by "),
    (re.compile(r"(?<=\d)x\b(?!\s*\d)"), lambda match: " times "),
    (re.compile(r"(?<=\d)-(?=\d)"), lambda match: " to "),
    (re.compile(r"(?<=\d)\s+-\s+(?=\d)"), lambda match: " minus "),
    (re.compile(r"(?<=\d)\s*[*×]\s*(?=\d)|(?<=\d)\s+x\s+(?=\d)"), lambda match: " times "),
    (re.compile(r"(?<=\d)\s*/\s*(?=\d)"), lambda match: " over "),
    (re.compile(r"(?<![\w.)])-\s?(?=[\d$€£¥])"), lambda match: " minus "),
    (re.compile(rf"(?<!\d)({NUMBER})\s?%"), lambda match: f"{number(match.group(1))} percent"),
    (re.compile(rf"(?<!\d)({NUMBER})\s?({'|'.join(sorted(map(re.escape, UNITS), key=len, reverse=True))})"
                r"(?![\w'/])(?:\.(?=\s+[a-z]))?",
                re.IGNORECASE),
     lambda match: quantity(match.group(1), UNITS[match.group(2).lower()])),
    (re.compile(r"\d+(?:\.\d+){2,}|" + NUMBER), _plain),
)  # fmt: skip


def write_out(text: str) -> str:
    """Replace every number in ASCII digits in `text` with words; the rest is unchanged."""
    for pattern, speak in RULES:
        text = pattern.sub(partial(_spaced, speak), text)
    return text


def _spaced(speak: Callable[[re.Match[str]], str], match: re.Match[str]) -> str:
    return f" {speak(match)} "


# Characters whose meaning would be lost in ASCII.
SYMBOLS = {
    "×": " times ", "÷": " divided by ", "±": " plus or minus ", "…": ". ", "—": ", ", "–": "-", "−": "-",
    "²": " squared ", "³": " cubed ", "½": " 1/2 ", "⅓": " 1/3 ", "⅔": " 2/3 ", "¼": " 1/4 ", "¾": " 3/4 ",
    "℃": "°C", "℉": "°F", "µ": "u",
}  # fmt: skip
KEPT = "€£¥¢°^"  # read by RULES
DROPPED = {"So", "Sk", "Cs", "Co", "Cn", "Cc", "Cf"}  # emoji, lone accents, surrogates, controls
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
# Words of two or three letters that are often written in capitals and are not acronyms.
SHOUTED = set(
    "am an as at be by do go he if in is it me my no of on or so to up us we ok all and any are but can day did for "
    "get has had her him his how its let may new not now off old one our out say see she the too two use was way who "
    "why yes yet you man men put got big ten six red".split()
)
# Words of four or five letters that are spelled out although they have a vowel.
SPELLED = set("AARP ADHD ASAP ESPN HDMI ICBM IEEE IMDB ISBN ISSN NAACP NCAA OECD UCLA USDA USPS USSR".split())
VOWELS = set("AEIOUY")

SCRIPTS = {  # keyed by the first word of a letter's Unicode name; for other scripts, messages contain that word
    "CJK": "Chinese characters", "IDEOGRAPHIC": "Chinese characters", "HIRAGANA": "Japanese letters",
    "KATAKANA": "Japanese letters", "KATAKANA-HIRAGANA": "Japanese letters", "HANGUL": "Korean letters",
    "DEVANAGARI": "Devanagari letters (Hindi and others)", "CYRILLIC": "Cyrillic letters (Russian and others)",
}  # fmt: skip
LATIN = {"LATIN", "MODIFIER"}  # the latter: ʻokina and the like
GREEK_SYMBOL = re.compile(r"(?<![Ͱ-Ͽἀ-῿])[Α-ω](?![Ͱ-Ͽἀ-῿])")  # a single letter is a symbol, as in "π" or "Δt"

ABBREVIATION = re.compile(rf"\b({'|'.join(ABBREVIATIONS)})\.", re.IGNORECASE)
TITLE = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof)(?=\s+[A-Z])")
MONTH_ABBREVIATION = re.compile(rf"\b({'|'.join(MONTHS)})\.?(?=\s+\d)|(?<=\d )({'|'.join(MONTHS)})\b\.?", re.IGNORECASE)
DOTTED = re.compile(r"\b(?:[A-Za-z]\.){2,}(?:[A-Za-z]\b)?|\b(?:[A-Z]\.)(?=\s+[A-Z])")
AFTER_DIGIT = re.compile(r"\d\s?\Z")
ACRONYM = re.compile(r"\b[A-Z]{2,5}s?\b")
NUMBERED_ABBREVIATION = re.compile(rf"\b({'|'.join(BEFORE_NUMBERS)})\.\s?(?=\d)", re.IGNORECASE)
# "Mon", "Wed", "Sat" and "Sun" are also words, so they need a date or time after them, or another day in a range.
DAYS = "Mon|Tues?|Wed|Thu(?:rs?)?|Fri|Sat|Sun"
DATED = rf",?\s+(?:{'|'.join(month.title() for month in MONTHS)}|{MONTH})\b|,?\s+\d"
WEEKDAY = re.compile(
    rf"\b(?:(Mon|Wed)\.|(Tues?|Thu(?:rs?)?|Fri)\b\.?|(Sat|Sun)\.(?={DATED})|(Mon|Wed|Sat|Sun)\b(?={DATED}))"
)
WEEKDAY_RANGE = re.compile(rf"\b({DAYS})\.?\s?-\s?({DAYS})\b\.?")
STREETS = {"St": "street", "Ave": "avenue", "Rd": "road", "Blvd": "boulevard", "Ln": "lane", "Hwy": "highway"}
STREET = re.compile(rf"(?<=[a-z] )({'|'.join(STREETS)})(?=,|;|\.?$)")
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
SPOKEN_DOMAINS = set("co me to so it be in no at is".split())  # two-letter domains read as words


def normalise(text: str, characters: str) -> str:
    """Convert `text` to lower-case words and punctuation in `characters`, with single spaces.

    The result is empty if nothing can be spoken.
    """
    text = write_out(_expand(_number_names(_spell_addresses(in_ascii(text)))))
    text = _spell_acronyms(text)
    return _reduce(_name_symbols(text).lower(), characters)


def in_ascii(text: str) -> str:
    """Convert `text` to ASCII and the characters in KEPT; the result may be several times as long."""
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
        return " " if unicodedata.category(character) in DROPPED else anyascii(character)

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
    is_spelled = is_country or (len(word) <= 5 and not set(word.upper()) & VOWELS)
    return " ".join(word) if is_spelled else word


def _number_names(text: str) -> str:
    """Replace Roman numerals after names and titles, e.g. "Henry VIII" → "Henry the eighth", "Part II" → "Part two"."""

    def spoken(match: re.Match[str]) -> str:
        first, second, numeral = match.group(1), match.group(2).strip(), match.group(3)
        name, count = second or first, ROMAN_NUMERALS.get(numeral)
        if count is None or name.lower() in SHOUTED:
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
    text = re.sub(r"\bPh(?:\.\s?)?D(s?)\b\.?", r"P H D \1", text)
    text = re.sub(r"\ba\.\s?k\.\s?a\.", "also known as", text, flags=re.IGNORECASE)
    text = re.sub(r"(\bft\.?\s+\d{1,2})\s?in\b\.?", r"\1 in.", text)
    text = re.sub(r"\bw/o\b", "without", text)
    text = re.sub(r"\bw/(?=\s|[a-z])", "with ", text)
    text = re.sub(r"\b([A-G])#", r"\1 sharp", text)
    text = re.sub(r"#(?=[A-Za-z])", " hashtag ", text)
    text = WEEKDAY_RANGE.sub(lambda match: f"{WEEKDAYS[match.group(1)]} to {WEEKDAYS[match.group(2)]}", text)
    text = WEEKDAY.sub(lambda match: WEEKDAYS[match.group().rstrip(".")], text)
    text = STREET.sub(lambda match: STREETS[match.group()], text)
    text = re.sub(r"\bHwy\.?(?=\s+\d)", "Highway", text)
    text = re.sub(r"\bvs\b\.?", "versus", text)
    text = NUMBERED_ABBREVIATION.sub(lambda match: f"{BEFORE_NUMBERS[match.group(1).lower()]} ", text)
    text = re.sub(r"\be\.\s?g\.", "for example", text, flags=re.IGNORECASE)
    text = re.sub(r"\bi\.\s?e\.", "that is", text, flags=re.IGNORECASE)
    text = re.sub(r"\bSt\.(?=\s+[A-Z])", "Saint", text)
    text = re.sub(r"\b[Ss]t\.(?=\s+[a-z])", "street", text)
    text = re.sub(r"\bst\.", "street.", text, flags=re.IGNORECASE)
    text = re.sub(r"(?:\bno\.\s?|#\s?)(?=\d)", " number ", text, flags=re.IGNORECASE)
    text = MONTH_ABBREVIATION.sub(lambda match: MONTHS[match.group().rstrip(".").lower()], text)
    text = ABBREVIATION.sub(lambda match: ABBREVIATIONS[match.group(1).lower()], text)
    text = TITLE.sub(lambda match: ABBREVIATIONS[match.group(1).lower()], text)
    # After a digit, "a.m." and "p.m." belong to the time.
    return DOTTED.sub(
        lambda match: (
            match.group()
            if AFTER_DIGIT.search(text, max(0, match.start() - 2), match.start())
            else _letters(match.group())
        ),
        text,
    )


def _letters(text: str) -> str:
    return f" {' '.join(character for character in text if character.isalpha())} "


def _spell_acronyms(text: str) -> str:
    """Spell out acronyms, e.g. BBC → b b c, unless the whole text is in capitals."""
    if not any(character.islower() for character in text):
        return text

    def spell(match: re.Match[str]) -> str:
        word, plural = match.group().removesuffix("s"), " s" if match.group().endswith("s") else ""
        is_word = len(word) > 3 and VOWELS & set(word) and word not in SPELLED
        readable = word.lower() in SHOUTED or is_word
        return match.group() if readable else _letters(word) + plural

    return ACRONYM.sub(spell, text)


def _name_symbols(text: str) -> str:
    text = re.sub(r"\b[Oo][Kk]\b", "okay", text)
    text = re.sub(r"\bhttps?://(?:www\.)?", "", text)
    text = re.sub(r"(?<=\w)\.(?=[A-Za-z])", " dot ", text)
    for symbol, name in {"&": "and", "@": "at", "+": "plus", "=": "equals", "%": "percent", "°": "degrees",
                         "$": "dollars", "€": "euros", "£": "pounds", "¥": "yen", "¢": "cents",
                         "#": "hash"}.items():  # fmt: skip
        text = text.replace(symbol, f" {name} ")
    text = re.sub(r"\s-+\s", ", ", text)
    text = re.sub(r"[!;]+", ".", text)
    return re.sub(r"[:()\[\]{}]", ",", text)


def _reduce(text: str, characters: str) -> str:
    text = "".join(character if character in characters else " " for character in text)
    text = re.sub(r"(?<![a-z])'|'(?![a-z])", " ", text)  # keep apostrophes only inside words
    text = re.sub(r"\s*([.,?])", r"\1", re.sub(r" +", " ", text))
    text = re.sub(r"[.,?]{2,}", lambda match: max(match.group(), key=",.?".index), text)
    text = re.sub(r"([.,?])(?=[a-z])", r"\1 ", text).strip(" ,")
    return re.sub(r"^[.,? ]+", "", text)
