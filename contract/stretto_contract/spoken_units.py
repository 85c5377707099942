"""Estimated time to speak a text: letters in units of a small letter, and the pauses marked in the text."""

import re
import unicodedata

# Time to speak a character, by the first letters of its Unicode category. Capitals may be spelled, and letters without
# case include those of Chinese, Japanese and Korean.
UNITS = {"Lu": 4, "Lt": 4, "Lo": 4, "N": 8, "S": 8, "P": 4}
PAUSE = re.compile(r'(?:<break\s+time="|\[pause\s+)([0-9]{1,4}(?:\.[0-9]{0,4})?)\s?(m?)s')  # Kyutai TTS, MOSS-TTS


def spoken_units(text: str) -> int:
    """Return the estimated time to speak a text, in units of a small letter (70 ms in usual speech)."""
    categories = map(unicodedata.category, text)
    return sum(UNITS.get(category, UNITS.get(category[0], 1)) for category in categories)


def pauses_s(text: str) -> float:
    """Return the duration of all pauses that are marked in a text, such as `<break time="2s"/>`, in seconds."""
    return sum(float(number) / (1000 if milli else 1) for number, milli in PAUSE.findall(text))
