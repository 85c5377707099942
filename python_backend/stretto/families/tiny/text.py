"""Normalisation of any text to words of a small English alphabet, for families without a subword tokenizer."""

import re
import unicodedata

from anyascii import anyascii

from stretto.families.tiny.numbers import write_out

# Characters whose meaning would be lost in ASCII.
SYMBOLS = {
    "×": " times ", "÷": " divided by ", "±": " plus or minus ", "…": ". ", "—": ", ", "–": "-", "−": "-",
    "²": " squared ", "³": " cubed ", "½": " 1/2 ", "⅓": " 1/3 ", "⅔": " 2/3 ", "¼": " 1/4 ", "¾": " 3/4 ",
    "℃": "°C", "℉": "°F", "µ": "u",
}  # fmt: skip
KEPT = "€£¥°"  # read by `numbers`
DROPPED = {"So", "Sk", "Cs", "Co", "Cn", "Cc", "Cf"}  # emoji, lone accents, surrogates, controls
ABBREVIATIONS = {
    "mr": "mister", "mrs": "missus", "ms": "miss", "dr": "doctor", "prof": "professor", "jr": "junior",
    "sr": "senior", "vs": "versus", "etc": "et cetera", "approx": "approximately", "dept": "department",
    "ave": "avenue", "rd": "road", "blvd": "boulevard", "mt": "mount", "capt": "captain", "gen": "general",
    "sgt": "sergeant", "rev": "reverend", "hon": "honorable", "govt": "government", "inc": "incorporated",
    "ltd": "limited", "corp": "corporation", "min": "minutes", "max": "maximum",
}  # fmt: skip
MONTHS = {
    "jan": "January", "feb": "February", "mar": "March", "apr": "April", "jun": "June", "jul": "July",
    "aug": "August", "sep": "September", "sept": "September", "oct": "October", "nov": "November", "dec": "December",
}  # fmt: skip
# Words of two or three letters that are often written in capitals and are not acronyms.
SHOUTED = set(
    "am an as at be by do go he if in is it me my no of on or so to up us we ok all and any are but can day did for "
    "get has had her him his how its let may new not now off old one our out say see she the too two use was way who "
    "why yes yet you man men put got big ten six red".split()
)
VOWELS = set("AEIOUY")

SCRIPTS = {  # the first word of a letter's name in Unicode, if an error message has a better one
    "CJK": "Chinese characters", "IDEOGRAPHIC": "Chinese characters", "HIRAGANA": "Japanese letters",
    "KATAKANA": "Japanese letters", "KATAKANA-HIRAGANA": "Japanese letters", "HANGUL": "Korean letters",
    "DEVANAGARI": "Devanagari letters (Hindi and others)", "CYRILLIC": "Cyrillic letters (Russian and others)",
}  # fmt: skip
LATIN = {"LATIN", "MODIFIER"}  # the latter: ʻokina and the like
GREEK_SYMBOL = re.compile(r"(?<![Ͱ-Ͽἀ-῿])[Α-ω](?![Ͱ-Ͽἀ-῿])")  # one letter alone: a symbol, as in "π" or "Δt"

ABBREVIATION = re.compile(rf"\b({'|'.join(ABBREVIATIONS)})\.", re.IGNORECASE)
TITLE = re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof)(?=\s+[A-Z])")
MONTH_ABBREVIATION = re.compile(rf"\b({'|'.join(MONTHS)})\.?(?=\s+\d)|(?<=\d )({'|'.join(MONTHS)})\b\.?", re.IGNORECASE)
DOTTED = re.compile(r"\b(?:[A-Za-z]\.){2,}(?:[A-Za-z]\b)?|\b(?:[A-Z]\.)(?=\s+[A-Z])")
ACRONYM = re.compile(r"\b[A-Z]{2,5}s?\b")


def normalise(text: str, characters: str) -> str:
    """Return `text` as lower-case words and punctuation of `characters`, with single spaces.

    "" if nothing can be spoken.
    """
    text = write_out(_expand(_ascii(GREEK_SYMBOL.sub(_greek_name, unicodedata.normalize("NFC", text)))))
    text = _spell_acronyms(text)
    return _reduce(_name_symbols(text).lower(), characters)


def words_of(normalised: str) -> tuple[str, ...]:
    """Return the words of a normalised text, in order, without punctuation."""
    return tuple(re.findall(r"[a-z](?:[a-z']*[a-z])?", normalised))


def other_script(text: str) -> tuple[str, str] | None:
    """Return the first script in `text` that an English voice cannot read, and the first word in it.

    None if there is none.
    Latin letters with any accents are readable, and so is a single Greek letter as a symbol.
    """
    for word in text.split():
        for character in filter(str.isalpha, GREEK_SYMBOL.sub("", unicodedata.normalize("NFKC", word))):
            script = unicodedata.name(character, "UNKNOWN").partition(" ")[0]
            if script not in LATIN:
                return SCRIPTS.get(script, f"{script.capitalize()} letters"), word
    return None


def _greek_name(found: re.Match[str]) -> str:
    """Return the name of a Greek letter between spaces, e.g. " pi "; letters with an accent are unchanged."""
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

    # NFC first: a letter and its combining accent are one character for anyascii.
    return "".join(map(ascii_of, unicodedata.normalize("NFC", text)))


def _expand(text: str) -> str:
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
        lambda match: match.group() if re.search(r"\d\s?$", text[: match.start()]) else _letters(match.group()), text
    )


def _letters(text: str) -> str:
    return f" {' '.join(character for character in text if character.isalpha())} "


def _spell_acronyms(text: str) -> str:
    """Spell acronyms, e.g. BBC → b b c, unless the whole text is in capitals."""
    if not any(character.islower() for character in text):
        return text

    def spell(match: re.Match[str]) -> str:
        word, plural = match.group().removesuffix("s"), " s" if match.group().endswith("s") else ""
        readable = word.lower() in SHOUTED or (len(word) > 3 and VOWELS & set(word))
        return match.group() if readable else _letters(word) + plural

    return ACRONYM.sub(spell, text)


def _name_symbols(text: str) -> str:
    text = re.sub(r"\b[Oo][Kk]\b", "okay", text)
    text = re.sub(r"\bhttps?://(?:www\.)?", "", text)
    text = re.sub(r"(?<=\w)\.(?=[A-Za-z])", " dot ", text)
    for symbol, name in {"&": "and", "@": "at", "+": "plus", "=": "equals", "%": "percent", "°": "degrees",
                         "$": "dollars", "€": "euros", "£": "pounds", "¥": "yen", "#": "hash"}.items():  # fmt: skip
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
