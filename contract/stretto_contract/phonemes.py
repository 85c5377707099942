"""Symbols of the phonetic alphabets that models read."""

import re

VOWELS = "AA|AE|AH|AO|AW|AY|EH|ER|EY|IH|IY|OW|OY|UH|UW"
CONSONANTS = "B|CH|D|DH|F|G|HH|JH|K|L|M|N|NG|P|R|S|SH|T|TH|V|W|Y|Z|ZH"
INITIALS = "b|p|m|f|d|t|n|l|g|k|h|j|q|x|zh|ch|sh|r|z|c|s|y|w"
FINALS = (
    "a|ai|an|ang|ao|e|ei|en|eng|er|i|ia|ian|iang|iao|ie|in|ing|iong|iu|o|ong|ou|u|ua|uai|uan|uang|ue|ui|un|uo|ü|üe|v|ve"
)
# Description and pattern of a symbol of each alphabet; an alphabet that is not here has any symbols.
SYMBOLS = {
    "cmu": (
        "symbols of the CMU dictionary, such as HH AH0 L OW1",
        re.compile(f"(?:{CONSONANTS})|(?:{VOWELS})[012]?"),
    ),
    "pinyin": (
        "syllables of pinyin with tones, such as ni3 hao3",
        re.compile(f"(?:(?:{INITIALS})?(?:{FINALS})|m|n|ng|hm|hng)[1-5]"),
    ),
}
