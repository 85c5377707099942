"""Phonemes in a text for VoxCPM2, in braces, as the authors document it for VoxCPM."""

from stretto.families.phonemes import cmu_symbols, pinyin_syllables


def write_cmu(phonemes: str) -> str:
    """Return phonemes of a word as `{HH AH0 L OW1}`; raise ValueError if one is unknown."""
    return f"{{{' '.join(cmu_symbols(phonemes))}}}"


def write_pinyin(phonemes: str) -> str:
    """Return syllables as `{ni3}{hao3}`; raise ValueError if one is not pinyin with a tone."""
    return "".join(f"{{{syllable}}}" for syllable in pinyin_syllables(phonemes))
