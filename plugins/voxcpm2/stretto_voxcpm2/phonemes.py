"""Phonemes in a text for VoxCPM2, in braces, as the authors document it for VoxCPM."""


def write_cmu(phonemes: str) -> str:
    """Return the phonemes of a word as `{HH AH0 L OW1}`."""
    return f"{{{phonemes}}}"


def write_pinyin(phonemes: str) -> str:
    """Return syllables as `{ni3}{hao3}`."""
    return "".join(f"{{{syllable}}}" for syllable in phonemes.split())
