"""Numbers as English words: counts, years, times, money, dates, units. Independent of model and alphabet."""

import re
from collections.abc import Callable
from functools import partial

from num2words import num2words

NUMBER = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?)"
MAX_COUNT_DIGITS = 15  # a longer number is read digit by digit
MONTHS = "January February March April May June July August September October November December".split()
# Lower-case "may" and "march" are verbs more often than months.
MONTH = "|".join(name if name in ("May", "March") else f"[{name[0]}{name[0].lower()}]{name[1:]}" for name in MONTHS)
YEAR_CUES = "in|since|from|until|till|by|before|after|during|year|spring|summer|autumn|fall|winter"
CURRENCIES = {"$": ("dollar", "cent"), "€": ("euro", "cent"), "£": ("pound", "pence"), "¥": ("yen", "")}
FRACTIONS = {"1/2": "one half", "1/3": "one third", "2/3": "two thirds", "1/4": "one quarter", "3/4": "three quarters"}
UNITS = {
    "km": "kilometers", "m": "meters", "cm": "centimeters", "mm": "millimeters", "mi": "miles", "ft": "feet",
    "kg": "kilograms", "g": "grams", "mg": "milligrams", "lb": "pounds", "lbs": "pounds", "oz": "ounces",
    "l": "liters", "ml": "milliliters", "h": "hours", "hr": "hours", "hrs": "hours", "min": "minutes",
    "mins": "minutes", "s": "seconds", "sec": "seconds", "secs": "seconds", "ms": "milliseconds",
    "mph": "miles per hour", "km/h": "kilometers per hour", "kph": "kilometers per hour", "hz": "hertz",
    "khz": "kilohertz", "mhz": "megahertz", "ghz": "gigahertz", "kb": "kilobytes", "mb": "megabytes",
    "gb": "gigabytes", "tb": "terabytes", "w": "watts", "kw": "kilowatts", "kwh": "kilowatt hours", "v": "volts",
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
    symbol, amount, scale = match.group("symbol"), match.group("amount"), match.group("scale")
    unit, part = CURRENCIES[symbol]
    units = unit if unit == "yen" else f"{unit}s"
    if scale:
        return f"{number(amount)} {scale} {units}"
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
    return _date(day, MONTHS[int(month) - 1], year_text, "{month} the {day}")


def _decade(match: re.Match[str]) -> str:
    text = match.group(1)
    words = year(int(text)) if len(text) == 4 else cardinal(int(text))
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def _plain(match: re.Match[str]) -> str:
    text = match.group()
    return number(text) if text.count(".") < 2 else " point ".join(map(number, text.split(".")))


Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]
DAY = r"(0?[1-9]|[12]\d|3[01])"
AMOUNT = rf"(?P<amount>{NUMBER})(?:\s?(?P<scale>thousand|million|billion|trillion))?"
RULES: tuple[Rule, ...] = (
    (re.compile(r"\b(\d{4})-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])(?![\d-])"), _iso_date),
    (re.compile(r"(?<![\d.,])\+?(?:\d{1,3}[ -])?\d{3}[ .-]\d{3,4}[ .-]\d{4}(?!\d)|(?<![\d.,-])\d{3}-\d{4}(?![\d-])"),
     lambda match: digits(match.group())),
    (re.compile(r"\+\d[\d ()-]{6,}\d"), lambda match: f"plus {digits(match.group())}"),
    (re.compile(r"\b(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\s?([AaPp])(?:\.\s?[Mm]\.?|[Mm]\b))?(?![\d:])"), _time),
    (re.compile(r"\b(\d{1,2})()()\s?([AaPp])(?:\.\s?[Mm]\.?|[Mm]\b)"), _time),
    (re.compile(rf"(?P<symbol>[$€£¥])\s?{AMOUNT}(?!\d)"), _money),
    (re.compile(rf"(?<![\d.]){AMOUNT}\s?(?P<symbol>[€£¥])"), _money),
    (re.compile(rf"\b({MONTH})\s+{DAY}(?:st|nd|rd|th)?(?![\d:.,]\d|\d)(?:,?\s+(\d{{4}})\b)?"),
     lambda match: _date(match.group(2), match.group(1), match.group(3), "{month} {day}")),
    (re.compile(rf"\b{DAY}(?:st|nd|rd|th)?\s+(?:of\s+)?({MONTH})\b(?:,?\s+(\d{{4}})\b)?"),
     lambda match: _date(match.group(1), match.group(2), match.group(3), "{day} of {month}")),
    (re.compile(r"\b(\d{1,15})(?:st|nd|rd|th)\b"), lambda match: ordinal(int(match.group(1)))),
    (re.compile(r"'?\b(\d{3}0|[2-9]0)s\b"), _decade),
    (re.compile(rf"\b({YEAR_CUES}|{MONTH})(,?\s+)(1[1-9]\d\d|20\d\d)(?![\d,:/]\d|\d|\.\d|\s?[%°])", re.IGNORECASE),
     lambda match: f"{match.group(1)}{match.group(2)}{year(int(match.group(3)))}"),
    (re.compile(r"\b(1[1-9]\d\d|20\d\d)\s?-\s?(1[1-9]\d\d|20\d\d)(?![\d-])"),
     lambda match: f"{year(int(match.group(1)))} to {year(int(match.group(2)))}"),
    (re.compile(r"(?<=\d)\s+(?=(?:1/[234]|2/3|3/4)(?![\d/]))"), lambda match: " and "),
    (re.compile(r"(?<![\d./])([1-3]/[234])(?![\d/])"),
     lambda match: FRACTIONS.get(match.group(1), match.group(1).replace("/", " over "))),
    (re.compile(r"(?<=\d)-(?=\d)"), lambda match: " to "),
    (re.compile(r"(?<=\d)\s+-\s+(?=\d)"), lambda match: " minus "),
    (re.compile(r"(?<=\d)\s*[*×]\s*(?=\d)|(?<=\d)\s+x\s+(?=\d)"), lambda match: " times "),
    (re.compile(r"(?<=\d)\s*/\s*(?=\d)"), lambda match: " over "),
    (re.compile(r"(?<![\w.)])-\s?(?=[\d$€£¥])"), lambda match: " minus "),
    (re.compile(rf"({NUMBER})\s?%"), lambda match: f"{number(match.group(1))} percent"),
    (re.compile(rf"({NUMBER})\s?({'|'.join(sorted(map(re.escape, UNITS), key=len, reverse=True))})(?![\w'/])",
                re.IGNORECASE),
     lambda match: quantity(match.group(1), UNITS[match.group(2).lower()])),
    (re.compile(r"\d+(?:\.\d+){2,}|" + NUMBER), _plain),
)  # fmt: skip


def write_out(text: str) -> str:
    """Return `text` with every number in ASCII digits replaced by words; the rest is unchanged."""
    for pattern, speak in RULES:
        text = pattern.sub(partial(_spaced, speak), text)
    return text


def _spaced(speak: Callable[[re.Match[str]], str], match: re.Match[str]) -> str:
    return f" {speak(match)} "
