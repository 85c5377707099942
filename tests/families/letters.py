"""Tokenizer that is small enough to check by eye."""

from stretto.family.text import TextTokenizer


class Letters(TextTokenizer):
    """Tokenizer with one token per letter: a is 0, b is 1, and so on; a blank is 26."""

    def __init__(self) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        return ["abcdefghijklmnopqrstuvwxyz ".index(letter) for letter in text]
