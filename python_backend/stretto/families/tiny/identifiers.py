"""Identifiers in words: addresses, paths, file names, hashes, codes, and telephone numbers with words.

Each one is spelled, or read part by part. If it is too long for a listener to write down, only its beginning is
spelled.
"""

import re
from collections.abc import Callable

from stretto.families.tiny.letters import NAMES, is_spelled, spell
from stretto.families.tiny.numbers import digits, number, year

MAX_SPELLED = 12  # maximum number of letters and digits that are spelled in full
NUM_SHOWN = 8  # characters spoken of a longer identifier, as people read hashes and UUIDs
# Addresses and paths may not end with the punctuation of the surrounding sentence.
EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,63}")
URL = re.compile(r"\b(?:(?:https?|ftp)://|www\.)[^\s<>\"]+|(?<![\w.-])(?:[a-z0-9-]{1,63}\.){1,8}[a-z]{2,63}/[^\s<>\"]*")
ENDINGS = (
    "pdf|docx?|txt|py|js|ts|jsx|tsx|json|html?|css|md|csv|xlsx?|png|jpe?g|gif|webp|mp[34]|m4a|zip|tar|t?gz|exe|wav|flac|log"
    "|ya?ml|toml|sh|cpp|hpp|rs|go|java|ipynb|pptx?|svg|xml|sql|db|iso|dmg|apk|ini|conf|cfg|bin|dll|epub|mov|avi|mkv|ogg"
    "|opus|php|rb|bat|psd|bak|lock|onnx|safetensors"
)
FILE = re.compile(rf"(?<![\w.@/\\-])(?:[\w-]+[/.]){{0,8}}[\w-]+\.(?:{ENDINGS})\b(?!\.\w|/)", re.IGNORECASE)
PATH = re.compile(
    r"\b[A-Za-z]:\\[^\s<>\"|?*]*"
    r"|(?<![\w/:.~<)\]-])(?<!\d )(?:(?:~|\.{1,2})?(?:/[\w.@+-]+){2,}/?"
    r"|(?:~|\.{1,2})(?:/[\w.@+-]+)+/?|/[A-Za-z][\w-]{2,})"
)
UUID = re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b")
HEX = re.compile(
    r"\b(?!\d+e\d{1,2}\b)(?=[a-f]*\d)(?=\d*[a-f])[0-9a-f]{7,128}\b|\b(?=[A-F]*\d)(?=\d*[A-F])[0-9A-F]{12,128}\b|\b0x[0-9a-fA-F]{1,64}\b"
)
COLOUR = re.compile(r"#(?=[0-9A-Fa-f]*\d)[0-9A-Fa-f]*[A-Fa-f][0-9A-Fa-f]*\b")
MAC = re.compile(r"(?<![\w:-])[0-9A-Fa-f]{2}([:-])[0-9A-Fa-f]{2}(?:\1[0-9A-Fa-f]{2}){4}(?![\w:-])")
IPV6 = re.compile(
    r"(?<![\w:])(?=[0-9A-Fa-f:]{0,38}\d)(?:(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}"
    r"|(?:[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){0,6})?::(?:[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){0,6})?)(?:/\d{1,3})?(?![\w:])"
)
IPV4 = re.compile(r"(?<![\w.-])(\d{1,3}(?:\.\d{1,3}){3})(?:([/:])(\d{1,5}))?(?![\w-]|\.\d)")
IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: [A-Z0-9]{4}){2,7}(?: [A-Z0-9]{1,3})?\b")
TOLL_FREE = "8(?:00|33|44|55|66|77|88)|900"
VANITY = re.compile(
    rf"(?<![\w-])(?:(1)[ -])?(\(?(?:{TOLL_FREE})\)?)[ -]([A-Z\d]*(?:-?[A-Z\d]+){{0,3}})(?![\w-])(?<=[A-Z]|\d)"
)
CUED = re.compile(
    r"\b((?i:pin|otp|isbn|issn|ean|iban|imei|ssn|vin|phone|tel|fax|code|passcode|password|zip|serial|account|order|ticket"
    r"|case|reference|invoice|tracking|confirmation|booking|member(?:ship)?|policy|routing)(?:\s(?i:number|no\.?|code|id))?"
    r"(?:\sis|:)?)\s?#?(\d{4,24})\b(?![.,:/]\d|\s?%)"
)
TOKEN = re.compile(r"(?<![\w.@#-])(?=[A-Za-z]{0,20}\d|\d{1,20}[A-Za-z])[A-Za-z0-9]{6,256}(?![\w.@]\w)")
LONG_TOKEN = re.compile(r"(?<!\S)(?=[^\s\d]{0,64}\d)(?=[^\sA-Z]{0,64}[A-Z])[A-Za-z0-9_+/=.-]{25,512}(?!\S)")
TURN = re.compile(r"(?<=\d)(?=[A-Za-z])|(?<=[A-Za-z])(?=\d)")
MEASURED = re.compile(r"(?:\d+[A-Za-z]{1,3})+|\d+(?:x\d+)+[a-z]{0,2}|\d+[pi]\d+", re.IGNORECASE)  # 1h30m, 10x15cm
IN_ADDRESSES = {
    ".": "dot", "/": "slash", "-": "dash", "_": "underscore", ":": "colon", "?": "question mark", "=": "equals",
    "&": "and", "#": "hash", "~": "tilde", "%": "percent", "+": "plus", "@": "at", "\\": "backslash",
}  # fmt: skip
SPOKEN_DOMAINS = set("co me to so it be in no at is".split())  # two-letter domains read as words
SPELLED_ENDINGS = {"exe", "avi", "apk", "xlsx", "py"}


def spell_identifiers(text: str) -> str:
    """Replace identifiers with words, e.g. "x.org/a_b" → "x dot org slash a underscore b"."""
    text = text.replace("mailto:", "")
    for pattern, speak in RULES:
        text = pattern.sub(speak, text)
    return text


def spelled(text: str) -> str:
    """Return the names of the letters, digits and signs in `text`, or only of the first ones if it is long."""
    size = sum(map(str.isalnum, text))
    signs = [sign for sign in text.lower() if sign.isalnum() or sign == ":"]
    words = [NAMES.get(sign) or IN_ADDRESSES.get(sign) or digits(sign) for sign in signs]
    if size <= MAX_SPELLED:
        return f" {' '.join(words)} "
    return f" {' '.join(words[:NUM_SHOWN])}, and so on, "


def _address(match: re.Match[str]) -> str:
    address = match.group().rstrip(".,;:!?'\")]}")
    punctuation = match.group()[len(address) :]
    plain = re.sub(r"^(?:https?|ftp)://(?:www\.)?", "", address).rstrip("/")
    words = re.findall(r"[A-Za-z]+|\d+|[^A-Za-z\d]", plain)
    return f" {' '.join(map(_address_word, words, [*words[-1:], *words]))}{punctuation} "


def _address_word(word: str, previous: str) -> str:
    if word.isdigit():
        is_year = len(word) == 4 and word[:2] in ("19", "20")
        if is_year:
            return year(int(word))
        return number(word) if len(word) <= 2 else digits(word)
    if not word.isalpha():
        return IN_ADDRESSES.get(word, " ")
    is_country = previous == "." and len(word) == 2 and word.lower() not in SPOKEN_DOMAINS
    is_letters = (
        is_country or len(word) == 1 or is_spelled(word) or (previous == "." and word.lower() in SPELLED_ENDINGS)
    )
    return spell(word) if is_letters else word


def _path(match: re.Match[str]) -> str:
    if match.group().count("/") == 1 and match.string[: match.start()].rstrip()[-1:].isdigit():
        return match.group()  # "5 /min"
    return _address(match)


def _ip(match: re.Match[str]) -> str:
    address = " dot ".join(map(digits, match.group(1).split(".")))
    sign = match.group(2)
    return f" {address} {IN_ADDRESSES[sign]} {digits(match.group(3))} " if sign else f" {address} "


def _mac(match: re.Match[str]) -> str:
    return f" {', '.join(spelled(group).strip() for group in re.split('[:-]', match.group()))} "


def _vanity(match: re.Match[str]) -> str:
    country, area, words_and_digits = match.groups()
    if not re.search("[A-Z]{3}", words_and_digits):
        return match.group()
    code = area.strip("()")
    words = [f"{digits(code[0])} hundred" if code.endswith("00") else digits(code)]
    words += [_vanity_word(word) for word in re.findall(r"[A-Z]+|\d+", words_and_digits)]
    return f" {'one ' if country else ''}{', '.join(words)} "


def _vanity_word(word: str) -> str:
    if word.isdigit():
        return digits(word)
    return spell(word) if is_spelled(word) else word.lower()


def _token(match: re.Match[str]) -> str:
    """Spell a token in which letters and digits alternate; others are numbers with names or units."""
    token = match.group()
    num_turns = len(TURN.findall(token))
    if num_turns < 3 or MEASURED.fullmatch(token):
        return token
    return spelled(token)


RULES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (EMAIL, _address),
    (URL, _address),
    (FILE, _address),
    (PATH, _path),
    (UUID, lambda match: spelled(match.group())),
    (MAC, _mac),
    (IPV6, lambda match: spelled(match.group().partition("/")[0])),
    (IPV4, _ip),
    (COLOUR, lambda match: f" hash {spelled(match.group())}"),
    (HEX, lambda match: spelled(match.group())),
    (IBAN, lambda match: f" {', '.join(spelled(group).strip() for group in match.group().split())} "),
    (LONG_TOKEN, lambda match: spelled(match.group())),
    (VANITY, _vanity),
    (CUED, lambda match: f"{match.group(1)} {digits(match.group(2))} "),
    (TOKEN, _token),
)
