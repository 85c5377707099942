"""Names of letters, and rules that decide which words are spelled letter by letter: acronyms and initials."""

import re

NAMES = {
    "a": "ay", "b": "bee", "c": "see", "d": "dee", "e": "ee", "f": "eff", "g": "gee", "h": "aitch", "i": "eye",
    "j": "jay", "k": "kay", "l": "el", "m": "em", "n": "en", "o": "oh", "p": "pee", "q": "cue", "r": "ar", "s": "ess",
    "t": "tee", "u": "you", "v": "vee", "w": "double you", "x": "ex", "y": "why", "z": "zee",
}  # fmt: skip
VOWELS = set("aeiouy")
# Words of two or three letters. In capitals, other words of this length are acronyms.
SHORT_WORDS = set(
    "ad ah am an as at aw ax be by do eh ex go ha he hi ho if in is it la lo ma me my no of oh ok on or ow ox pa "
    "pi so to uh um up us we ye yo ace act add ado age ago aha aid ail aim air ale all and ant any ape apt arc "
    "are ark arm art ash ask ate awe axe bad bag ban bar bat bay bed bee beg bet bid big bin bit boa bob bog boo "
    "bow box boy bra bud bug bun bus but buy bye cab can cap car cat cob cod cog cop cot cow coy cry cub cue cup "
    "cut dad dam day den dew did die dig dim din dip doe dog don dot dry dub due dug duo dye ear eat ebb eel egg "
    "ego elf elk elm end era eve eye fad fan far fat fax fed fee few fib fig fin fir fit fix flu fly foe fog for "
    "fox fry fun fur gag gap gas gay gel gem get gin god got gum gun gut guy gym had ham has hat hay hem hen her "
    "hey hid him hip his hit hog hop hot how hub hug huh hum hut ice icy ill ink inn ion its ivy jab jam jar jaw "
    "jet job jog joy jug keg key kid kin kit lab lad lap law lay led leg let lid lie lip lit log lot low mad man "
    "map mat may men met mix mob mom mop mow mud mug mum nag nap net new nil nod nor not now nun nut oak oar oat "
    "odd off oil old one opt orb ore our out owe owl own pad pal pan par pat paw pay pea peg pen pet pie pig pin "
    "pit pod pop pot pro pub pun pup put rag ram ran rap rat raw ray red rib rid rig rim rip rob rod rot row rub "
    "rug rum run rut rye sad sat saw say sea see set sew she shy sin sip sir sit six ski sky sly sob sod son soy "
    "spa spy sub sue sum sun tab tag tan tap tar tax tea ten the thy tie tin tip toe ton too top toy try tub tug "
    "two use van vet via vow wag war was wax way web wed wet who why wig win wit woe won wow yea yes yet you zip "
    "zoo app per yep nah meh duh ooh aah ugh gif lan rom sim shh hmm mmm brr grr zzz tsk nth mrs".split()
)
# Words of four or five letters that are spelled out although they have a vowel.
SPELLED = set(
    "AARP ADHD ASAP ESPN HDMI ICBM IEEE IMDB ISBN ISSN NAACP NCAA OECD UCLA USDA USPS USSR RSVP ICAO ISDN IMHO "
    "USAF YMCA YWCA ACLU AFAIK UNHCR".split()
)
# Words of three letters in a text in capitals; others, such as "CEO" and "FBI", are acronyms.
READABLE = re.compile(r"[^aeiou]?[aeiou](?:([^aeiouyqjv])(?:\1|y)?|e)")
# Short words in capitals that are acronyms unless the words around them are in capitals too; `it` and `who` only after
# an article.
AMBIGUOUS = {"us", "am"}
AFTER_ARTICLE = re.compile(r"\b(?i:the|an|our|your|their|my|his|her)\s+\Z")
ACRONYM = re.compile(r"(?<![A-Za-z])(?<![A-Za-z]')([A-Z]{2,6})('[sS]|s'?)?(?!'?[A-Za-z])-?")
SOUND = re.compile(r"(.)\1\Z|(.)\2\2")  # `SHHH`, `GRRR`
SHOUTED_BEFORE = re.compile(r"(?:[A-Z]{2,}|\bI)[\s,]+\Z")
SHOUTED_AFTER = re.compile(r"[\s,]+[A-Z]{2,}(?![a-z])")
# Other words without vowels are abbreviations (`bldg`) or sounds (`hmm`).
SPELLED_IN_LOWER_CASE = re.compile(
    r"(?<![A-Za-z'.])(bbc|brb|btw|cd|css|dvd|ftp|gps|html|https?|mc|mp|pc|pdf|php|sms|sql|ssh|tv|xml)(s?)(?![A-Za-z'])"
)
RUN = re.compile(r"(?<![\w'])(?:[A-Za-z][ -]){2,}[A-Za-z](?![\w'])|(?<![\w'])[A-Z][ -][A-Z](?![\w'])")
LETTER = re.compile(r"(?<![A-Za-z'])[B-HJ-Zb-hj-z](?![A-Za-z]|'(?!s\b))-?")
LETTERS = re.compile(r"(?<![A-Za-z'])([B-DF-HJ-NP-TV-Z])s(?![A-Za-z'])")
# `A` is a letter, and not an article, after these words, before punctuation, and in a pair of letters.
LETTER_A = re.compile(
    r"((?i:\b(?:vitamin|grade|plan|letter|point|class|group|type|team|option|section|side|part|exhibit|block|gate|row|an)"
    r"\s+)|(?<![A-Za-z'])(?=A(?:\s*(?:[.,;:!?)\"]|$)|\s(?:or|and|to|from|versus)\s[A-Z]\b)))A(?![A-Za-z'])"
)


def spell(text: str, plural: str = "") -> str:
    """Return the names of the letters in `text`, e.g. "BBC" → "bee bee see"; other characters are skipped.

    `plural` is added to the last name: "s" or "'s".
    """
    names = " ".join(NAMES[letter] for letter in text.lower() if letter in NAMES)
    if plural == "s" and names.endswith(("s", "x", "ch")):
        plural = "es"
    return f" {names}{plural} "


def is_spelled(word: str) -> bool:
    """Return True if a word of an address is spelled letter by letter, because it is short and has no vowel."""
    return len(word) <= 5 and not VOWELS & set(word.lower())


def _is_acronym(word: str, text: str, start: int, end: int, is_shouted: bool) -> bool:
    """Return True if a word in capitals, which is or begins `text[start:end]`, is spelled."""
    lower = word.lower()
    if lower in AMBIGUOUS:
        return not (is_shouted or SHOUTED_BEFORE.search(text[:start]) or SHOUTED_AFTER.match(text, end))
    if lower in ("it", "who") and AFTER_ARTICLE.search(text[:start]):
        return True
    if lower in SHORT_WORDS and "&" not in (text[start - 1 : start], text[end : end + 1]):
        return False
    if len(word) <= 3:
        return len(word) == 2 or not (is_shouted and READABLE.fullmatch(lower))
    return word in SPELLED or not (VOWELS & set(lower) or SOUND.search(lower))


def spell_acronyms(text: str, is_shouted: bool) -> str:
    """Spell out acronyms, e.g. "BBC" → "bee bee see", and a few in lower case, e.g. "html".

    A word in capitals is an acronym if it has no vowel, or at most three letters and is not one of SHORT_WORDS.

    Args:
        is_shouted: True if the text was written without lower-case letters. Then words of three letters that can be
            read are no acronyms either.
    """

    def spelled(match: re.Match[str]) -> str:
        word = match.group(1)
        plural = (match.group(2) or "").lower().rstrip("'")
        return spell(word, plural) if _is_acronym(word, text, match.start(), match.end(), is_shouted) else match.group()

    text = ACRONYM.sub(spelled, text)
    return SPELLED_IN_LOWER_CASE.sub(lambda match: spell(*match.groups()), text)


def name_letters(text: str) -> str:
    """Replace single letters with their names, except the words `a` and `I`, e.g. "plan B" → "plan bee"."""
    text = RUN.sub(lambda match: spell(match.group()), text)
    text = LETTER_A.sub(lambda match: f"{match.group(1)}{spell('a')}", text)
    text = LETTERS.sub(lambda match: spell(match.group(1), "s"), text)
    text = LETTER.sub(lambda match: spell(match.group()), text)
    return re.sub(r"\s+'s\b", "'s", text)
