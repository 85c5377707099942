"""Numbers in the notations of other countries and of mathematics, rewritten as in plain English text.

`1.234,5` becomes `1,234.5`, `10⁻³` becomes `10^-3`, and `2½` becomes `2 1/2`. A number whose notation is unknown is
replaced with its digits in words, so that it is not read as another number.
"""

import re
import unicodedata
from decimal import Decimal
from functools import lru_cache
from itertools import groupby

from stretto.families.tiny.numbers import digits
from stretto.families.tiny.units import SIGNS

SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"  # they never separate the numbers of a list
# A number with every character that may separate its groups. A plain space separates groups of three digits only.
TOKEN = re.compile(
    rf"(?<![\w,])(?<![\d.]\.)(?<!\d['’])\d(?:\d|[.,_٫٬](?=\d)|['’](?=\d{{3}}(?!\d))|[{SPACES} ](?=\d{{3}}(?!\d)))*"
)
JOINER = re.compile(rf"[{SPACES}'’_]")  # separates the groups of one number, never numbers of a list
COUNT = r"\d{1,3}(?:,\d{3})*"
WESTERN = re.compile(rf"(?!0\d|0,){COUNT}(?:\.\d+)?|\d+(?:\.\d+)*")
GROUPED = re.compile(r"(?!0)(\d{1,3}(?: \d{3})+)(?:[.,](\d+))?")  # with spaces in place of the separators
INDIAN = re.compile(r"(?!0)(\d{1,2}(?:,\d\d)+,\d{3})(?:\.(\d+))?")
CONTINENTAL = re.compile(r"(?!0)(\d{1,3}(?:\.\d{3})+)(?:,(\d+))?")
DECIMAL_COMMA = re.compile(r"(\d+),(\d+)")
SMALL_LIST = re.compile(r"\d{1,2}(?:,\d{1,2})+")
LONG_DECIMALS = re.compile(r"\d+\.\d{3}(?: \d{1,3})+")  # 3.141 592
LISTED = "rows?|pages?|rooms?|columns|items|chapters|figures|tables|verses|sections|lines|steps|numbers|points|levels"
BEFORE_LIST = re.compile(rf"[(\[{{]\Z|\b(?:{LISTED})\s\Z", re.IGNORECASE)
OCTET = re.compile(r"0|1\d{0,2}|2(?:[0-4]\d?|5[0-5]?|[6-9])?|[3-9]\d?")  # part of an address or a version
BEFORE_VERSION = re.compile(
    r"\b(?:version|release|build|firmware|kernel|network|subnet|host|address|ip|section)\s\Z", re.IGNORECASE
)
MONTH_DAY = re.compile(r"\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\s\Z", re.IGNORECASE)
MONEY = r"€|EUR|kr\b|zł|Kč|R\$|CHF|Fr\."
UP_TO = r"\s?[-\u2013\u2014]\s?"
AMOUNT = r"\d[\d.]*(?:,\d+)?"
# The number of a person or a company, with check digits.
IDENTIFIER = re.compile(
    rf"(?<![\w.,])\d{{1,3}}(?:\.\d{{3}}){{2}}(?:-\d{{1,2}}|/\d{{4}}-\d\d)(?!\w|[.,]\d|\s?(?:{MONEY}))"
)
AFTER_MONEY = re.compile(rf"(?:{MONEY})\.?\s?(?:{AMOUNT}{UP_TO})?\Z")
BEFORE_MONEY = re.compile(rf"(?:{UP_TO}{AMOUNT})?\s?(?:{MONEY})(?!\s?/)")
AFTER_SIGN = re.compile(rf"(?:[{SIGNS}]\s?|(?<!\S)[-\u2212])\Z")
INDIVISIBLE = re.compile(
    r"\s(?:people|persons|inhabitants|residents|citizens|users|viewers|followers|subscribers|customers|employees|votes|voters"
    r"|members|fans|visitors|tourists|children|women|men|workers|students|soldiers|deaths|refugees)\b"
)
QUANTIFIED = re.compile(
    rf"\s?(?:[%‰°$€£¥₹]|{MONEY}|(?:[kcm]?m|[km]?g|[km]W|MB|GB|people|users|years|dollars|euros|pounds)\b)"
)

# Numbers before signs for powers of ten, such as 3.5万, in a text in Latin letters.
EAST_ASIAN = re.compile(r"(?:\d[\d,]*(?:\.\d+)?[百千万萬亿億兆]){1,4}(?:\d{1,4}(?![\d.,]))?")
EAST_ASIAN_PART = re.compile(r"([\d.]+)(\D?)")
MONEY_WORDS = {"円": "yen", "元": "yuan", "원": "won"}
EAST_ASIAN_MONEY = re.compile(rf"(?<=\d)\s?([{''.join(MONEY_WORDS)}])")
SCALES = {"Mio": "million", "Mill": "million", "mln": "million", "Mrd": "billion", "mld": "billion", "mrd": "billion"}
SCALE = re.compile(rf"(?<=\d)\s?({'|'.join(SCALES)})\b\.?(?!\w)")
PRICE_DOT = re.compile(r"(?<=[£$€])(\d+)·(?=\d\d\b)")
TIMES_DOT = re.compile(r"(?<=\d)\s?[·⋅∙]\s?(?=\d)")
UNIT_DOT = re.compile(r"(?<![A-Za-z])(N|[kMG]?W)[·⋅](m|h)(?![A-Za-z])")
SUSPENDED = re.compile(r"(?<=\d)…(?=[-\u2212]?\d)")  # 5…10
DEGREES = re.compile(r"(?<=\d)º(?=\s?[CFNSEW]\b)|(?<=\d\d\d)º")
INFINITE = re.compile(r"(?<![\w)])[-\u2212](?=∞)")
RUPEES_ONLY = re.compile(r"(?<=\d)/-(?!\w)")  # Rs. 500/-
INCHES = re.compile(r"(?<![\d.′])(?<!′ )(\d+(?:\.\d+)?)″(?!\s?[NSEW])")
NUMBER_SIGN = re.compile(r"\b[nN][º°]\s?(?=\d)")
ORDINAL_SIGN = re.compile(r"(\d+)[ºª]")
MINUS = re.compile(r"(?<![\d\s])−(?=\s|[.,;:!?)\]]|$)|(?<=[\w)])−(?=[\w(])(?!(?<=\b\d{4}−)\d{4}\b)")


def plain_notation(text: str) -> str:
    """Rewrite the numbers and signs in `text` in plain English notation."""
    text = "".join(map(_unsquared, unicodedata.normalize("NFC", text)))
    text = EAST_ASIAN_MONEY.sub(lambda match: f" {MONEY_WORDS[match.group(1)]}", EAST_ASIAN.sub(_in_digits, text))
    text = TIMES_DOT.sub(" times ", PRICE_DOT.sub(r"\1.", text))
    text = SCALE.sub(lambda match: f" {SCALES[match.group(1)]}", text)
    text = SUSPENDED.sub("..", UNIT_DOT.sub(r"\1\2", text))
    text = INFINITE.sub("minus ", RUPEES_ONLY.sub("", DEGREES.sub("°", text)))
    text = NUMBER_SIGN.sub("number ", text)
    text = INCHES.sub(r"\1 in.", text)
    text = ORDINAL_SIGN.sub(lambda match: with_suffix(match.group(1)), text)
    text = MINUS.sub(" minus ", text)
    runs = list[str]()
    for form, run in groupby(text, _form):
        runs.append(_rewritten(form, "".join(run), runs[-1] if runs else ""))
    return TOKEN.sub(_canonical, IDENTIFIER.sub(_by_groups, "".join(runs)))


def _by_groups(match: re.Match[str]) -> str:
    return f" {', '.join(map(digits, re.findall(r'[0-9]+', match.group())))} "


def with_suffix(digits_text: str) -> str:
    """Return a number with the suffix of its ordinal, e.g. "22" → "22nd"."""
    ends = {"1": "st", "2": "nd", "3": "rd"}
    is_teen = digits_text[-2:-1] == "1"
    return digits_text + ("th" if is_teen else ends.get(digits_text[-1], "th"))


@lru_cache(maxsize=4096)
def _unsquared(character: str) -> str:
    """Return the letters of a unit that is written as one character, e.g. "㎞" → "km"."""
    form, *codes = unicodedata.decomposition(character).split() or [""]
    return "".join(chr(int(code, 16)) for code in codes) if form == "<square>" else character


def _in_digits(match: re.Match[str]) -> str:
    parts = EAST_ASIAN_PART.findall(match.group().replace(",", ""))
    values = (Decimal(count) * int(unicodedata.numeric(sign or "一")) for count, sign in parts)
    total = sum(values, Decimal())
    return f"{total.normalize():,f}"


@lru_cache(maxsize=4096)
def _form(character: str) -> str:
    """Return the form of a character as in its Unicode decomposition, e.g. "super"; empty if it is written as usual."""
    if character.isascii() or character in "™℠":
        return ""
    form = unicodedata.decomposition(character).partition(" ")[0]
    if form in ("<super>", "<sub>", "<fraction>"):
        return form.strip("<>")
    category = unicodedata.category(character)
    if category == "Nd":
        return "digit"
    if category == "No" or form == "<circle>":
        return "enclosed"
    return ""


def _rewritten(form: str, run: str, before: str) -> str:
    plain = unicodedata.normalize("NFKC", run).replace("−", "-")
    if form == "super":
        return _raised(plain, before)
    if form == "sub":
        return f" base {plain}" if before[-1:].isdigit() else plain
    if form == "fraction":
        space = " " if before[-1:].isdigit() else ""
        return space + " ".join(unicodedata.normalize("NFKC", character).replace("⁄", "/") for character in run)
    if form == "enclosed":
        return "".join(map(_enclosed, run))
    return "".join(str(unicodedata.decimal(character)) for character in run) if form == "digit" else run


def _enclosed(character: str) -> str:
    """Return an enclosed number or letter, such as ② or Ⓑ, between spaces."""
    number = unicodedata.numeric(character, -1.0)
    if number >= 0 and number.is_integer():
        return f" {int(number)}, "
    return f" {unicodedata.normalize('NFKC', character)} "


def _raised(plain: str, before: str) -> str:
    """Return superscripts as a power, an ordinal suffix or a sign; empty for the number of a footnote."""
    last = before[-1:]
    if last.isdigit() and plain in ("st", "nd", "rd", "th"):
        return plain
    if plain.rstrip("+-").isdigit() and plain[-1] in "+-":  # the charge of an ion
        return f" {plain[:-1]} {'plus' if plain[-1] == '+' else 'minus'}"
    if plain in ("+", "-"):
        return " plus" if plain == "+" else " minus"
    word = re.search(r"[^\W\d_]*\Z", before)
    num_letters = len(word.group()) if word else 0
    if plain.isalpha() and len(plain) > 1:
        return plain
    if last.isdigit() or last in tuple(")]}") or 0 < num_letters <= 3:
        return f"^{plain}"
    if plain.isdigit() and (num_letters or last in tuple(".,;:!?”\"'’")):
        return ""
    return plain


def _canonical(match: re.Match[str]) -> str:
    """Return a number with commas between groups of three digits and a decimal point, or its digits in words."""
    token = match.group().replace("٫", ".").replace("٬", ",")
    before = match.string[max(match.start() - 24, 0) : match.start()]
    after = match.string[match.end() : match.end() + 12]
    if token.isdigit():
        return token
    if grouping := CONTINENTAL.fullmatch(token):
        num_groups = token.count(".")
        is_count = AFTER_MONEY.search(before) or BEFORE_MONEY.match(after) or INDIVISIBLE.match(after)
        is_version = BEFORE_VERSION.search(before) or all(map(OCTET.fullmatch, token.split(".")))
        if grouping[2] or is_count or (num_groups > 1 and not is_version):
            return _western(grouping[1], grouping[2])
    if WESTERN.fullmatch(token):
        return token
    is_joined = JOINER.search(token) is not None
    spaced = JOINER.sub(" ", token)
    if (grouping := GROUPED.fullmatch(spaced)) and (is_joined or _is_count(token, before, after)):
        return _western(grouping[1], grouping[2])
    if LONG_DECIMALS.fullmatch(spaced):
        return spaced.replace(" ", "")
    if grouping := INDIAN.fullmatch(token):
        return _western(grouping[1], grouping[2])
    if grouping := DECIMAL_COMMA.fullmatch(token):
        is_list = BEFORE_LIST.search(before) or MONTH_DAY.search(before)
        return token.replace(",", ", ") if is_list else f"{grouping[1]}.{grouping[2]}"
    if SMALL_LIST.fullmatch(token):
        return token.replace(",", ", ")
    if " " in token:  # a list, or a telephone number
        return " ".join(TOKEN.sub(_canonical, token_of_list) for token_of_list in token.split(" "))
    return _by_groups(match)


def _is_count(token: str, before: str, after: str) -> bool:
    """Return True if groups with plain spaces are one number, and not a list or a telephone number."""
    groups = re.split("[ .,]", token)
    if len(groups[0]) < 3 or set(groups[1:]) == {"000"} or "," in token or "." in token:
        return True
    is_signed = AFTER_SIGN.search(before) is not None or AFTER_MONEY.search(before) is not None
    return is_signed or QUANTIFIED.match(after) is not None


def _western(whole: str, decimals: str | None) -> str:
    digits_text = re.sub(r"\D", "", whole)
    return f"{int(digits_text):,}" + (f".{decimals}" if decimals else "")
