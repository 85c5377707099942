"""Numbers in words: counts, times, dates, money, units, ranges, and groups of digits."""

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise

from num2words import num2words

from stretto.families.tiny.letters import spell
from stretto.families.tiny.units import CASED_UNITS, CODES, CURRENCIES, PER, PER_NOUNS, SIGNS, SINGULAR, UNITS

NUMBER = r"(?:\d{1,3}(?:,\d{3}){1,8}(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?)"
MAX_COUNT_DIGITS = 15  # a longer number is read digit by digit
MONTH_NAMES = "January February March April May June July August September October November December".split()
# Lower-case "may" and "march" are verbs more often than months.
MONTH = "|".join(
    name if name in ("May", "March") else f"[{name[0]}{name[0].lower()}]{name[1:]}" for name in MONTH_NAMES
)
YEAR_CUES = "circa|in|since|from|until|till|by|before|after|during|year|spring|summer|autumn|fall|winter"
MONEY = CURRENCIES | CODES
ANY_CODE = "|".join(sorted(map(re.escape, CODES), key=len, reverse=True))
DIRECTIONS = {"N": "north", "S": "south", "E": "east", "W": "west"}
POWERS = {"2": "squared", "3": "cubed"}
RELEASES = {"rc": "release candidate", "alpha": "alpha", "beta": "beta", "dev": "dev", "pre": "pre", "post": "post"}
SCALES = {"k": "thousand", "m": "million", "b": "billion", "bn": "billion", "tn": "trillion"}  # in amounts: $3M
WITH_SLASHES = {"24/7": "twenty four seven", "9/11": "nine eleven", "50/50": "fifty fifty"}
# Nouns after which "3m" is a number and not a length, and "4B" not the number of a room.
COUNTED = (
    "people|users|views|viewers|followers|subscribers|downloads|customers|jobs|homes|copies|votes|voters|barrels|tons|tonnes|"
    "dollars|euros|pounds|parameters|models?|units|shares|streams|likes|tokens|players|members|fans|visitors|"
    "tourists|children|women|men|workers|students|doses|cases|deaths|hits|records|years"
)
DECADES = "music|pop|rock|hip|movies?|films?|fashion|style|nostalgia|kids?|hits?|songs?|bands?|era|party|shows?"
MAX_DENOMINATOR = 16  # 3/16 is "three sixteenths", 3/17 is "three over seventeen"


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
        return f"{cardinal(hours)} o'clock" if 0 < hours <= 12 else f"{cardinal(hours)} hundred"
    spoken = f"{'oh ' if minutes < 10 else ''}{cardinal(minutes)}" if minutes else ""
    return f"{cardinal(hours)} {spoken} {suffix}"


def code(text: str) -> str:
    """Read digits as in a flight or house number, e.g. "2490" → "twenty four ninety"; "105" → "one oh five"."""
    if not 3 <= len(text) <= 4 or text[0] == "0":
        return digits(text)
    head = text[:-2]
    tail = text[-2:]
    if tail == "00":
        return cardinal(int(text)) if int(head) % 10 == 0 else f"{cardinal(int(head))} hundred"
    return f"{cardinal(int(head))} {'oh ' if tail[0] == '0' else ''}{cardinal(int(tail))}"


def _time(match: re.Match[str]) -> str:
    hours, minutes, seconds, half_day = match.groups()
    suffix = spell(f"{half_day}m").strip() if half_day else ""
    if int(hours) > 24 or int(minutes or 0) > 59 or int(seconds or 0) > 59:
        return " ".join(cardinal(int(figure)) for figure in (hours, minutes, seconds) if figure) + f" {suffix}"
    spoken = clock(int(hours), int(minutes or 0), suffix)
    return f"{spoken} and {quantity(seconds, 'seconds')}" if int(seconds or 0) else spoken


def quantity(count: str, unit: str) -> str:
    """Return a count with its unit as words, e.g. "1", "kilometers per hour" → "one kilometer per hour"."""
    if count == "1":
        nouns, per, denominator = unit.partition(" per ")
        unit = " ".join(SINGULAR.get(noun, noun.removesuffix("s")) for noun in nouns.split()) + per + denominator
    return f"{number(count)} {unit}"


def _money(match: re.Match[str]) -> str:
    symbol = match.group("symbol")
    amount = match.group("amount")
    scale = match.group("scale") or match.group("letter")
    unit, units, fraction, parts = MONEY[symbol]
    if scale:
        return f"{number(amount)} {SCALES.get(scale.lower(), scale)} {units}"
    whole, _, cents = amount.partition(".")
    is_one = whole == "1"
    is_round = not cents.strip("0")
    if not fraction or len(cents) != 2 or is_round:
        return f"{number(whole if is_round else amount)} {unit if is_one and is_round else units}"
    small = f"{cardinal(int(cents))} {fraction if cents == '01' else parts}"
    return small if whole == "0" else f"{number(whole)} {unit if is_one else units} and {small}"


def _date(day: str, month: str, year_text: str | None, order: str) -> str:
    spoken = order.format(day=ordinal(int(day)), month=month)
    return f"{spoken}, {year(int(year_text))}" if year_text else spoken


def _iso_date(match: re.Match[str]) -> str:
    year_text, _, month, day = match.groups()
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


def _year_month(match: re.Match[str]) -> str:
    """Read "2026-05" as a month, but "2010-11", whose second year follows the first, as a range."""
    year_text, month = match.groups()
    if int(month) == (int(year_text) + 1) % 100:
        return f"{year(int(year_text))} to {cardinal(int(month))}"
    return f"{MONTH_NAMES[int(month) - 1]} {year(int(year_text))}"


def _short_date(match: re.Match[str]) -> str:
    before, month, day = match.groups()
    is_fraction = int(month) < int(day) <= MAX_DENOMINATOR and month[0] != "0"
    return match.group() if is_fraction else f"{before}{MONTH_NAMES[int(month) - 1]} {ordinal(int(day))}"


def _shift(match: re.Match[str]) -> str:
    """Read a time zone's difference from UTC, e.g. "-08:00" → "minus eight"."""
    sign, hours, minutes = match.groups()[-3:]
    name = match.group(1) if len(match.groups()) > 3 else ""
    minutes_spoken = f" {cardinal(int(minutes))}" if int(minutes or 0) else ""
    return f"{name} {'plus' if sign == '+' else 'minus'} {cardinal(int(hours))}{minutes_spoken}"


def _bearing(match: re.Match[str]) -> str:
    """Read a coordinate, e.g. 40°26'46"N → "forty degrees twenty six minutes forty six seconds north"."""
    degrees, minutes, seconds, direction = match.groups()
    words = [quantity(degrees, "degrees")]
    if minutes:
        words.append(quantity(minutes, "minutes"))
    if seconds:
        words.append(quantity(seconds, "seconds"))
    return " ".join([*words, DIRECTIONS.get(direction, "")])


def _power(match: re.Match[str]) -> str:
    exponent = (match.group(1) or match.group(2)).strip()
    sign = "minus " if exponent[0] == "-" else ""
    return POWERS.get(exponent) or f"to the power of {sign}{exponent.lstrip('-').replace('/', ' over ')}"


def _raised_units(match: re.Match[str]) -> str:
    """Read units with exponents, e.g. "9.8 m/s^2" → "nine point eight meters per second squared"."""
    count, symbol, exponent, per, per_exponent = match.groups()
    unit = _raised(CASED_UNITS.get(symbol) or UNITS[symbol.lower()], exponent)
    return quantity(count, unit + (f" per {_raised(PER.get(per, per), per_exponent)}" if per else ""))


def _raised(unit: str, exponent: str | None) -> str:
    if not exponent:
        return unit
    if unit.startswith("second"):
        return f"{unit} {POWERS[exponent]}"
    return f"{'square' if exponent == '2' else 'cubic'} {unit}"


def _short_range(match: re.Match[str]) -> str:
    """Read "1914-18" as two years."""
    first, last = match.groups()
    words = year(int(first)) if int(last) > int(first[2:]) else number(first)
    return f"{words} to {cardinal(int(last))}"


def _area(match: re.Match[str]) -> str:
    per, symbol, exponent, time = match.groups()
    unit = _raised(CASED_UNITS.get(symbol) or UNITS.get(symbol, "inches"), exponent)
    unit += f" per {PER.get(time, time)}" if time else ""
    return f"per {quantity('1', unit).removeprefix('one ')}" if per else unit


def _rate(match: re.Match[str]) -> str:
    """Read a unit without a number, e.g. "kg/m^3" → "kilograms per cubic meter"."""
    symbol, per, exponent = match.groups()
    unit = CASED_UNITS.get(symbol) or UNITS.get(symbol.lower(), symbol)
    return f"{unit} per {_raised(PER.get(per, per), exponent)}"


def _rounded(match: re.Match[str]) -> str:
    return _plural(number(match.group(1))).removeprefix("one ")


def _fraction(match: re.Match[str]) -> str:
    over = int(match.group(1))
    under = int(match.group(2))
    if match.group() in WITH_SLASHES:
        return WITH_SLASHES[match.group()]
    if under in (10, 100):
        return f"{number(match.group(1))} out of {number(match.group(2))}"
    if not 0 < over < under <= MAX_DENOMINATOR:
        return f"{number(match.group(1))} over {number(match.group(2))}"
    fraction = {2: "half", 4: "quarter"}.get(under) or ordinal(under)
    return f"{cardinal(over)} {fraction}{'s' if over > 1 else ''}"


def _decade(match: re.Match[str]) -> str:
    text = match.group(1) or match.group(2) or match.group(3)
    words = year(int(text)) if len(text) == 4 else cardinal(int(text))
    return _plural(words)


def _decades(match: re.Match[str]) -> str:
    century, first, last = match.groups()
    words = year(int(century + first)) if century else cardinal(int(first))
    return f"{_plural(words)} to {_plural(cardinal(int(last)))}"


def _plural(words: str) -> str:
    if words.endswith("y"):
        return f"{words[:-1]}ies"
    return f"{words}es" if words.endswith("x") else f"{words}s"


def _plain(match: re.Match[str]) -> str:
    text = match.group()
    return number(text) if text.count(".") < 2 else " point ".join(map(_part, text.split(".")))


def _part(text: str) -> str:
    """Read a part of a version or an address."""
    return number(text) if len(text) < 3 else digits(text)


def _season(match: re.Match[str]) -> str:
    """Read "2024/25" as two years."""
    first, last = map(int, match.groups())
    return f"{year(first)} to {cardinal(last)}" if last == (first + 1) % 100 else match.group()


def _neighbouring_decades(match: re.Match[str]) -> str:
    first, link, last = match.groups()
    if int(last) - int(first) != 10:
        return match.group()
    return f"{_plural(cardinal(int(first)))} {link} {_plural(cardinal(int(last)))}"


def _exponent(match: re.Match[str]) -> str:
    sign = "minus " if match.group(2) == "-" else ""
    symbol = match.group(4)
    unit = f" {CASED_UNITS.get(symbol) or UNITS[symbol.lower()]}" if symbol else ""
    per = f" per {PER.get(match.group(5), match.group(5))}" if match.group(5) else ""
    return f"{number(match.group(1))} times ten to the {sign}{cardinal(int(match.group(3)))}{unit}{per}"


def _scaled(match: re.Match[str]) -> str:
    return f"{match.group(1)} {SCALES[(match.group(2) or match.group(3)).lower()]}"


def _unit(match: re.Match[str]) -> str:
    unit = match.group(2)
    return quantity(match.group(1), CASED_UNITS.get(unit) or UNITS[unit.lower()])


def _groups(match: re.Match[str]) -> str:
    """Read groups as a telephone or card number if they begin with 0 or have at least 9 digits, or 3 and 4 digits.

    Numbers at equal distances are a list.
    """
    groups = match.group().split(" ")
    is_years = all(re.fullmatch(r"19\d\d|20\d\d", group) for group in groups)
    is_count = all(group == "000" for group in groups[1:])
    size = sum(map(len, groups))
    if is_count:
        return cardinal(int("".join(groups)))
    steps = {int(second) - int(first) for first, second in pairwise(groups)}
    if len(groups) > 2 and len(steps) == 1 and steps != {0}:
        return ", ".join(groups)
    if is_years or (max(map(len, groups)) > 4 and groups[0][0] != "0"):
        return match.group()
    if not (groups[0][0] == "0" or size >= 9 or [*map(len, groups)] in ([3, 4], [3, 3])):
        return match.group()
    return ", ".join(map(digits, groups))


# A number of three or four digits after one of these words is read as a code: "Room one oh five".
CODED = (
    r"Boeing|Airbus|[Rr]oom|[Ff]light|[Ss]uite|[Aa]partment|[Rr]oute|[Hh]ighway|[Bb]us|[Tt]rain|[Gg]ate"
    r"|[Ee]xtension|Box|HTTP"
)
BEFORE_AMOUNTS = "over|than|about|around|nearly|almost|costs?|worth|paid|raised|lost|earned"
SERVICE_NUMBERS = "000|101|111|112|211|311|411|511|611|711|811|911|988|999"  # after a verb such as "call"
SCAN_LINES = "144|240|360|480|540|576|720|1080|1440|2160|4320"  # heights of videos
PENSION_PLANS = "401|403|457"  # paragraphs of a law, known as 401k, 403b and 457b
# Works that are cited by chapter and verse. Those with first names of people are missing: times follow these, too.
CITED = (
    "Genesis|Exodus|Leviticus|Deuteronomy|Judges|Kings|Chronicles|Nehemiah|Psalms?|Proverbs|Ecclesiastes|Isaiah"
    "|Ezekiel|Hosea|Acts|Romans|Corinthians|Galatians|Ephesians|Philippians|Colossians|Thessalonians|Hebrews|Revelation"
    "|Quran|Surah|[Cc]hapter"
)
# A number that is most often a year; before a plural noun it is a count.
DATED_YEAR = re.compile(
    rf"(?<![\w.,:/{SIGNS}-])(?:1[1-9]\d\d|20\d\d)(?![\w:/%°-]|[.,]\d)(?!\s(?:{COUNTED})\b)"
    r"(?:(?<=\bthe \d{4})|(?!\s(?:(?!(?:in|on|at|of|to|for|by|the|was|is|and|or|as|a|this|his|its|has|had|with|from)\b)"
    r"[a-z]+\s)?(?!(?:was|is|has|its|as|this|us|does|his|perhaps|always|across|besides|towards)\b)[a-z]+s\b))"
)
POWER = r"(?<=[\w)\]])\s?(?:\^|\*\*)\s?"
Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]
DAY = r"(0?[1-9]|[12]\d|3[01])"
HALF_DAY = r"\s?[AaPp](?:\.\s?[Mm]\.|[Mm]\b)"
ANY_UNIT = "|".join(
    [
        *sorted(CASED_UNITS, key=len, reverse=True),
        f"(?i:{'|'.join(sorted(map(re.escape, UNITS), key=len, reverse=True))})",
    ]
)
ANY_PER = "|".join(sorted([*map(re.escape, PER), *PER_NOUNS.split()], key=len, reverse=True))
QUANTITY = rf"[{SIGNS}]?{NUMBER}(?::\d\d)?(?:{HALF_DAY}|\s?(?:%|[kKMB]\b|(?:{ANY_UNIT})(?![\w'])))"
AMOUNT = (
    rf"(?P<amount>{NUMBER})(?:\s?(?P<scale>thousand|million|billion|trillion|lakh|crore)|(?P<letter>[kKmMbB]|bn|tn)\b)?"
)
LENGTH = r"[cmk]?m|in\.|ft|px"
RULES: tuple[Rule, ...] = (
    (re.compile(rf"(?<![\w.])(\d+(?:\.\d+)?)(?:e|E(?=[+-]))([+-]?)(\d{{1,3}})\b(?:\s?({ANY_UNIT})(?:/({ANY_PER}))?(?![\w'/^]))?"),
     _exponent),
    (re.compile(r"\+\d[\d ()-]{6,}\d"), lambda match: f"plus {digits(match.group())}"),
    (re.compile(r"(?<![\w/.-])(\d{1,2}/\d{1,2})\s?-\s?(?=\d{1,2}/\d{1,2}(?![\d/]))"),
     lambda match: f"{match.group(1)} to"),
    (re.compile(r"(?<=\d)\s?x\s?(?=10(?:\^|\*\*))"), lambda match: "times"),
    (re.compile(r"\b(20\d\d|19\d\d)/(\d\d)\b(?!/)"), _season),
    (re.compile(r"(?<![\d:.,])(\d+):(\d{1,3}(?:,\d{3})+)(?![\d:])"),
     lambda match: f"{number(match.group(1))} to {number(match.group(2))}"),
    (re.compile(r"(?<![\w.,'])([5-8]0)s (and) ([6-9]0)s\b"), _neighbouring_decades),
    (re.compile(rf"(?<=[A-Za-z])/(?=1000?\s?(?:{ANY_UNIT})(?![\w']))"), lambda match: "per"),
    (re.compile(r"(?<=\))\s?/\s?(?=[\d(]|[A-Za-z](?!\w))|(?<=[\d)])\s?/\s?(?=\()"), lambda match: "over"),
    (re.compile(r"((?:\^|\*\*)\d+)\s?-\s?(?=\d)"), lambda match: f"{match.group(1)} minus"),
    (re.compile(r"(?<![\w.,])0\d{1,5}[-/]\d{3,8}(?![\w/-]|\.\d)"), lambda match: digits(match.group())),
    (re.compile(r"(?<=\d)\.\.+(?=-?\d)"), lambda match: "to"),
    (re.compile(r"(?<![\d:.])(\d+(?:\.\d+)?):(\d+\.\d+)(?![\d:])(?<!:\d\d\.\d)(?<!:\d\d\.\d\d)(?<!:\d\d\.\d{3})"),
     lambda match: f"{number(match.group(1))} to {number(match.group(2))}"),
    (re.compile(r"(\d+)'\s?[xX]\s?(\d+)'(?!\d)"),
     lambda match: f"{quantity(match.group(1), 'feet')} by {quantity(match.group(2), 'feet')}"),
    (re.compile(r"(?:'|\b(\d\d))(\d0)s\s?-\s?'?(\d0)s\b"), _decades),
    (re.compile(r"\b([01]\d|2[0-3])([0-5]\d)\s(?=(?:hours|hrs)\b)"), lambda match: code(match.group().strip())),
    (re.compile(r"(?<![A-Za-z.])([A-Z])\.(?=\d)"), lambda match: f"{spell(match.group(1))} dot"),
    (re.compile(rf"(?<![\w.])({NUMBER})\s?({ANY_UNIT})(?:\^([23])(?:/({ANY_PER})(?:\^([23]))?)?)(?![\w'/^])"),
     _raised_units),
    (re.compile(rf"(?<![\w.])({NUMBER})\s?({ANY_UNIT})()/({ANY_PER})\^([23])(?![\w'/^])"), _raised_units),
    (re.compile(rf"(?<![\w/])(?<!\d\s)([kcm]?m|mi|[kmgµ]?[gG]|MB|GB|kB|mL|L|N|J|W)/({ANY_PER})(?:\^([23]))?(?![\w'/^])"),
     _rate),
    (re.compile(rf"(?<=\w)/({ANY_PER})\^([23])(?!\w)"),
     lambda match: f"per {_raised(PER.get(match.group(1), match.group(1)), match.group(2))}"),
    (re.compile(rf"(?<!\w)(per )?([kcm]?m|ft|in|mi|yd)\^([23])(?:/({ANY_PER}))?(?!\w)"), _area),
    (re.compile(rf"{POWER}(?:\{{([^{{}}]{{1,24}})\}}|\(([^()]{{1,24}})\))"), _power),
    (re.compile(rf"{POWER}([23])(?![\d.]\d|\d|\s?(?:\^|\*\*))()"), _power),
    (re.compile(rf"{POWER}(-?)(?=\d|[A-Za-z](?![A-Za-z]))"),
     lambda match: f"to the power of{' minus' * bool(match.group(1))}"),
    (re.compile(r"\b(UTC|GMT)\s?([+-])\s?(\d{1,2})(?::?(\d\d))?\b"), _shift),
    (re.compile(r"(?:(?<=\d\d:\d\d:\d\d)|(?<=T\d\d:\d\d))([+-])(\d\d):?(\d\d)\b"), _shift),
    (re.compile(r"(?<![\w-])(A{1,3}|B{1,3}|C{1,3}|D|F|AB|O)([+-])(?=[\s.,;:!?)\]\"']|$)"),
     lambda match: f"{spell(match.group(1))} {'plus' if match.group(2) == '+' else 'minus'}"),
    (re.compile(r"(?<![\w.'-])([b-hj-z])-(?=\d)"), lambda match: f"{match.group(1)} minus"),
    (re.compile(r"(?<![\w.'-])(?:([b-hj-z])\s-\s(?=\d|[b-hj-z](?![\w'-]))|(\d+)\s-\s(?=[b-hj-z](?![\w'-])))"),
     lambda match: f"{match.group(1) or match.group(2)} minus"),
    (re.compile(r"(?<![\w.'])(\d+[abn-z])\s-\s(?=\d|[b-hj-z](?![\w'-]))"), lambda match: f"{match.group(1)} minus"),
    (re.compile(r"(?<![\w.)%°-])-(?=[b-hj-z](?![\w-]))"), lambda match: "minus"),
    (re.compile(rf"(?<![\d.])({NUMBER})\s?°\s?(?:(\d{{1,2}})'\s?(?:(\d{{1,2}}(?:\.\d+)?)(?:\"|'')\s?)?)?([NSEW])\b"),
     _bearing),
    (re.compile(r"(?<![\d.])(\d{1,3})°\s?(\d{1,2})'\s?(?:(\d{1,2}(?:\.\d+)?)(?:\"|''))?()"), _bearing),
    (re.compile(r"\b(\d[\d,]*0)s\b(?=\s+of\b)"), _rounded),
    (re.compile(r"\b([01]?\d|2[0-3])h([0-5]\d)\b(?!\s?m)"), lambda match: f"{match.group(1)}:{match.group(2)}"),
    (re.compile(r"\bv(?=\d)"), lambda match: "version"),
    (re.compile(rf"(?<=\d)[-.]?({'|'.join(RELEASES)})[-.]?(?=\d{{0,3}}\b)"), lambda match: RELEASES[match.group(1)]),
    (re.compile(r"\b0b([01]+)\b"), lambda match: f"zero {spell('b')} {digits(match.group(1))}"),
    (re.compile(r"(\b\d+(?:st|nd|rd|th)|\b\d*0s)\s?-\s?(?='?\d+(?:st|nd|rd|th|s)\b)"),
     lambda match: f"{match.group(1)} to"),
    (re.compile(r"(?<![\d.])(\d{1,2})\.(\d\d)\s?([AaPp])\.?[Mm]\b"),
     lambda match: f"{match.group(1)}:{match.group(2)} {match.group(3)}m"),
    (re.compile(r"(?<=\d)\s?h\s?(\d{1,2})\s?m(?![\w'/])"), lambda match: f"h {match.group(1)} min"),
    (re.compile(r"(?<=\d)\s?m\s?(?=\d{1,2}\s?s\b)"), lambda match: "min"),
    (re.compile(r"(?<=\d{4}[-/]\d\d[-/]\d\d)T(?=\d\d:\d\d)"), lambda match: ","),
    (re.compile(r"(?<=:\d\d)(?:\.\d+)?Z\b"), lambda match: " UTC"),
    (re.compile(r"(?<=\d:\d\d)\.(\d+)\b"), lambda match: f"point {digits(match.group(1))}"),  # a lap time
    (re.compile(r"(?<=, [A-Z]{2} )\d{5}(?:-\d{4})?\b(?![.,]\d)"), lambda match: digits(match.group())),  # a postal code
    (re.compile(r"\b(\d{4})([-/.])(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?![\d/-])"), _iso_date),
    (re.compile(r"\b((?:19|20)\d\d)-(0[1-9]|1[0-2])\b(?![-/.:]\d)"), _year_month),
    (re.compile(rf"\b((?:on|by|until|due|since|dated)\s)(0?[1-9]|1[0-2])/{DAY}(?![\d/]|\sof\b)"), _short_date),
    (re.compile(rf"((?<![\w/])[{SIGNS}]?{NUMBER}[kKMB]?\s?[A-Za-z°%]*)/({ANY_PER})(?![\w'/])"),
     lambda match: f"{match.group(1)} per {PER.get(match.group(2), match.group(2))}"),
    (re.compile(rf"(?<![\d/.]){DAY}/{DAY}/(\d{{4}}|\d\d)(?![\d/])"), _slashed_date),
    (re.compile(rf"(?<![\d.,]){DAY}\.(0?[1-9]|1[0-2])\.(1[1-9]\d\d|20\d\d)(?![\d.]\d|\d)"), _dotted_date),
    (re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)"),
     lambda match: " dot ".join(map(digits, match.group().split(".")))),
    (re.compile(r"\b([A-Z][A-Za-z]*-)(\d{1,4})s\b"),
     lambda match: f"{match.group(1)} {_plural(number(match.group(2)))}"),
    (re.compile(rf"\b((?i:call|dial|phone|ring|text))\s+({SERVICE_NUMBERS})\b(?!\s[a-z]|[.,:]\d)"),
     lambda match: f"{match.group(1)} {digits(match.group(2))}"),
    (re.compile(rf"\b({SCAN_LINES})([pi])\b"), lambda match: f"{code(match.group(1))} {spell(match.group(2))}"),
    (re.compile(rf"\b({PENSION_PLANS})\s?\(?([kKbB])(?:\)|\b)"),
     lambda match: f"{code(match.group(1))} {spell(match.group(2))}"),
    (re.compile(r"\bca?\.\s?(1\d{3}|20\d\d)\b(?![.,]\d)"), lambda match: f"circa {year(int(match.group(1)))}"),
    (re.compile(rf"\b({CITED})\s(\d{{1,3}}):(\d{{1,3}})(?:-(\d{{1,3}}))?(?![\d:]|{HALF_DAY})"),
     lambda match: " ".join([match.group(1), cardinal(int(match.group(2))), cardinal(int(match.group(3))),
                             *(["to", cardinal(int(match.group(4)))] if match.group(4) else [])])),
    (re.compile(r"\b([A-Z]{1,4})(\d{1,2})s\b"),
     lambda match: f"{match.group(1)} {_plural(cardinal(int(match.group(2))))}"),  # "MP3s"
    (re.compile(rf"\b({CODED})\s+(\d{{3,4}})(?:-(\d{{3,4}}))?\b(?![.,:]\d)"),
     lambda match: f"{match.group(1)} {code(match.group(2))} {code(match.group(3) or '')}"),
    (re.compile(r"(?<!\d)(\d{3,4})\s?x\s?(\d{3,4})(?!\d)"),
     lambda match: f"{code(match.group(1))} by {code(match.group(2))}"),
    (re.compile(rf"({NUMBER}\s?(?:{LENGTH}))\s?x\s?(?=\d)"), lambda match: f"{match.group(1)} by"),
    (re.compile(rf"(?<![\d.,])({NUMBER})\s?x\s?(?={NUMBER}(?:\s?x\s?{NUMBER})?\s?(?:{LENGTH})(?![\w']))"),
     lambda match: f"{match.group(1)} by"),
    (re.compile(r"\b(\d)' ?(\d{1,2})(?:\"|'')"),
     lambda match: f"{quantity(match.group(1), 'feet')} {cardinal(int(match.group(2)))}"),
    (re.compile(r"\b([A-Za-z]+-?)(\d{3,4})\b(?![.,:]\d)"), lambda match: f"{match.group(1)} {code(match.group(2))}"),
    (re.compile(rf"(?<![\d.,{SIGNS}])(\d{{3,4}})(?:([AC-JN-UX-Z])\b|([A-Z])(?=\s[A-Z][a-z]))"),
     lambda match: f"{code(match.group(1))} {spell(match.group(2) or match.group(3))}"),
    (re.compile(r"\((?:\d{3}\)\s?\d{3}[ .-]|\d\d\)\s?\d{4,5}-)\d{4}(?!\d)"), lambda match: digits(match.group())),
    (re.compile(r"(?<![\d.,])\+?(?:\d{1,3}[ -])?\d{3}[ .-]\d{3,4}[ .-]\d{4}(?!\d)|(?<![\d.,-])\d{3}-\d{4}(?![\d-])"),
     lambda match: digits(match.group())),
    (re.compile(r"(?<![\w.-])\d+(?:-\d+){2,}(?![\w-])"),
     lambda match: ", ".join(map(digits, match.group().split("-")))),
    (re.compile(rf"(?<![\w.,:/{SIGNS}-])(?<!\d )\d{{1,5}}(?: \d{{2,8}}){{1,6}}(?![\w%/:]| ?\d|[.,]\d)"), _groups),
    (re.compile(rf"\b({MONTH})\s+{DAY}(?:st|nd|rd|th)?\s?-\s?{DAY}(?:st|nd|rd|th)?(?![\d:.,]\d|\d)"),
     lambda match: f"{match.group(1)} {ordinal(int(match.group(2)))} to {ordinal(int(match.group(3)))}"),
    (re.compile(rf"\b{DAY}(?:st|nd|rd|th)?\s?-\s?{DAY}(?:st|nd|rd|th)?\s+(?:of\s+)?({MONTH})\b"),
     lambda match: f"{ordinal(int(match.group(1)))} to {ordinal(int(match.group(2)))} of {match.group(3)}"),
    (re.compile(rf"((?:{MONTH})\s+\d{{1,2}}(?:st|nd|rd|th)?(?:,? \d{{4}})?)\s?-\s?(?={MONTH})"),
     lambda match: f"{match.group(1)} to"),
    (re.compile(r"\b(1[1-9]\d\d|20\d\d)\s?-\s?(1[1-9]\d\d|20\d\d)(?![\d-])"),
     lambda match: f"{year(int(match.group(1)))} to {year(int(match.group(2)))}"),
    (re.compile(r"\b(1[1-9]\d\d|20\d\d)\s?-\s?(\d\d)(?![\d/%-]|[.:]\d)"), _short_range),
    (re.compile(r"(?<![\w.-])(\d+)-(?=(?:1/[2-9]|2/3|3/[458]|[57]/8)(?![\d/]))"), lambda match: match.group(1)),
    # Ranges and signs, while their numbers still have digits.
    (re.compile(rf"(?<![\w.)%°-])-({NUMBER})\s?-\s?(-?)(?={NUMBER}(?![\w{SIGNS}]))(?<! - )"),
     lambda match: f"minus {match.group(1)} to{' minus' * bool(match.group(2))}"),
    (re.compile(rf"(?<![\w.-])([{SIGNS}])({NUMBER})\s?-\s?(?={NUMBER}[kKMB]?(?![\d{SIGNS}%]))"),
     lambda match: f"{match.group(2)} to {match.group(1)}"),
    (re.compile(rf"(?<![\w.-])({QUANTITY})\s?-\s?(?=[{SIGNS}]?\.?\d)"), lambda match: f"{match.group(1)} to"),
    (re.compile(r"(?<![\d.-])(\d[\d.,]*(?::\d\d)?)-(?=\d+(?:\.\d+)?\s?=)"), lambda match: f"{match.group(1)} minus"),
    (re.compile(rf"(?<![\w.-])([{SIGNS}]?{NUMBER}(?::\d\d)?)-(?=[{SIGNS}]?\d)"), lambda match: f"{match.group(1)} to"),
    (re.compile(rf"(?<![\w.-])({NUMBER})\s-\s(?={QUANTITY})"), lambda match: f"{match.group(1)} to"),
    (re.compile(r"(?<=\d)\s+-\s+(?=[\d.])"), lambda match: " minus "),
    (re.compile(r"(?<=\d)-(?=[A-Za-z])"), lambda match: ""),  # "5-year-old", "R2-D2"
    (re.compile(rf"([{SIGNS}])-(?=\d)"), lambda match: f" minus {match.group(1)}"),
    (re.compile(rf"(?<![\w.)%°-])-(?=[{SIGNS}]?\.?\d)"), lambda match: " minus "),
    (re.compile(r"(?<![\w.])\.(\d+)"), lambda match: f"zero point {digits(match.group(1))}"),
    (re.compile(r"\b(\d{1,2}):(\d{2})(?::(\d{2}))?(?:\s?([AaPp])(?:\.\s?[Mm]\.?|[Mm]\b))?(?![\d:])"), _time),
    (re.compile(r"\b(\d{1,2})()()\s?([AaPp])(?:\.\s?[Mm]\.?|[Mm]\b)"), _time),
    (re.compile(rf"(?<![A-Za-z])(?P<symbol>{ANY_CODE})\s?{AMOUNT}(?![\d])"), _money),
    (re.compile(rf"(?<![\d.]){AMOUNT}\s?(?P<symbol>{ANY_CODE})(?![A-Za-z$])"), _money),
    (re.compile(rf"(?P<symbol>[{SIGNS}])\s?{AMOUNT}(?!\d)"), _money),
    (re.compile(rf"(?<![\d.]){AMOUNT}\s?(?P<symbol>[{SIGNS[1:]}])"), _money),
    (re.compile(rf"(?<![\d.])({NUMBER})\s?¢"), lambda match: quantity(match.group(1), "cents")),
    (re.compile(rf"\b({MONTH})\s+{DAY}(?:st|nd|rd|th)?(?![\d:.,]\d|\d)(?:,?\s+(\d{{4}})\b)?"),
     lambda match: _date(match.group(2), match.group(1), match.group(3), "{month} {day}")),
    (re.compile(rf"\b{DAY}(?:st|nd|rd|th)?\s+(?:of\s+)?({MONTH})\b(?:,?\s+(\d{{4}})\b)?"),
     lambda match: _date(match.group(1), match.group(2), match.group(3), "{day} of {month}")),
    (re.compile(r"\b(\d{1,3}(?:,\d{3}){1,4}|\d{1,15})(?:st|nd|rd|th)\b"),
     lambda match: ordinal(int(match.group(1).replace(",", "")))),
    (re.compile(r"'?\b(\d{3}0)'?s\b|(?:(?<=\bthe )|(?<=\bhis )|(?<=\bher )|(?<=\btheir )|(?<=\bmy )|(?<=\bearly )"
                rf"|(?<=\bmid[ -])|(?<=\blate )|')([2-9]0)'?s\b|\b([2-9]0)s(?=\s(?:{DECADES})\b)"), _decade),
    (re.compile(r"\b(\d{1,2})'s\b"), lambda match: _plural(cardinal(int(match.group(1))))),
    (re.compile(rf"\b({YEAR_CUES}|Q[1-4]|{MONTH})(,?\s+)(1[1-9]\d\d|20\d\d)(?![\d,:/]\d|\d|\.\d|\s?[%°])",
                re.IGNORECASE),
     lambda match: f"{match.group(1)}{match.group(2)}{year(int(match.group(3)))}"),
    (re.compile(r"(?<=\d)\s+(?=(?:1/[2-9]|2/[3579]|3/[4578]|4/[579]|5/[6-9]|6/7|7/[89]|8/9|\d{1,2}/(?:16|32|64))(?![\d/]))"),
     lambda match: " and "),
    (re.compile(r"(?<![\d./])(\d{1,3})/(\d{1,3})(?![\d/])"), _fraction),
    (re.compile(r"(?<![\d:])(\d{1,4}):(\d{1,4})(?![\d:])"),
     lambda match: f"{number(match.group(1))} to {number(match.group(2))}"),
    (re.compile(rf"(?<![\w.])({NUMBER})(?:(k|bn|tn)\b|([KMBm])(?=\s(?:[a-z]+\s){{0,2}}(?:{COUNTED})\b))"), _scaled),
    (re.compile(r"(?:^|(?<=[.!?] ))(?!3M)(\d{1,3})(M)(?=\s[a-z])"), _scaled),
    (re.compile(rf"(?<![\w.])((?i:{BEFORE_AMOUNTS})\s+{NUMBER}|\d+\.\d+)([KMB])\b"), _scaled),
    (re.compile(r"(?<=\d)([A-Z])\b(?<![WVL])"), lambda match: spell(match.group(1))),
    (re.compile(r"(?<=\d)x(?=\d)"), lambda match: " by "),
    (re.compile(r"(?<=\d)x\b(?!\s*(?:[\d+=*/^)-]|squared|cubed|to the power|plus|minus|over))"),
     lambda match: " times "),
    (re.compile(r"(?<=\d)\s*[*×]\s*(?=\d)|(?<=\d)\s+x\s+(?=\d)"), lambda match: " times "),
    (re.compile(r"(?<=\d)\s*/\s*(?=\d)|(?<=\b[b-hj-z])/(?=\d)|(?<=\d)/(?=[b-hj-z]\b)|(?<=\bpi )\s?/(?=\d)"),
     lambda match: " over "),
    (re.compile(rf"(?<!\d)({NUMBER})\s?%"), lambda match: f"{number(match.group(1))} percent"),
    (re.compile(rf"(?<!\d)({NUMBER})\s{{0,2}}({ANY_UNIT})(?![\w']|/(?!\d))(?:\.(?=\s+[a-z]))?"), _unit),
    (re.compile(r"(?<![\w.,])\d{10,}(?<!000)(?![\w,]|\.\d)"), lambda match: digits(match.group())),
    (re.compile(r"(?<=[A-Za-z])\d{5,}|\d{5,}(?=[A-Za-z])"), lambda match: digits(match.group())),
    (DATED_YEAR, lambda match: year(int(match.group()))),
    (re.compile(r"\d+(?:\.\d+){2,}|" + NUMBER), _plain),
)  # fmt: skip


def write_out(text: str) -> str:
    """Replace every number in ASCII digits in `text` with words; the rest is unchanged."""
    for pattern, speak in RULES:
        text = pattern.sub(partial(_spaced, speak), text)
    return text


def _spaced(speak: Callable[[re.Match[str]], str], match: re.Match[str]) -> str:
    return f" {speak(match)} "


FRACTION = "half|thirds?|quarters?|(?:fif|six|eigh)ths?"
# Words before a unit, such as numbers in words. Elsewhere "ml" or "HR" may mean something else.
BEFORE_UNIT = "|".join(
    ["per", "an?", "each", "every", "in", "few", "many", "several", "hundred", "thousand", "million",
     "billion", "trillion", FRACTION,
     *map(cardinal, (*range(20), *range(20, 100, 10)))]
)  # fmt: skip
UNIT_ALONE = re.compile(
    rf"(?:\b((?i:{BEFORE_UNIT}))\s+|(?<=\w)/)"
    rf"(k[gm]|sq km|sq ft|[cm]m|m[gl]|lbs?|oz|tsp|tbsp|hrs?|kWh|mph|kph|[kMG]?Hz|[kMGT]B|kbps|[MG]bps)"
    rf"(?:/({ANY_PER}))?(?![\w'])"
)


def name_units(text: str) -> str:
    """Replace units after a word such as "per" or "ten", e.g. "per km" → "per kilometer"."""

    def named(match: re.Match[str]) -> str:
        before = match.group(1) or " per"
        unit = UNITS[match.group(2).lower()]
        per = match.group(3)
        if re.fullmatch(f"per|an?|each|every|one|{FRACTION}", before.strip().lower()):
            unit = quantity("1", unit).removeprefix("one ")
        return f"{before} {unit}{f' per {PER.get(per, per)}' if per else ''}"

    return UNIT_ALONE.sub(named, text)
