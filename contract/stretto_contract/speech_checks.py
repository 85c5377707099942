"""Checks of speech while it is generated, and the faults that they find."""

from typing import Literal, get_args

Check = Literal["off", "signals", "words"]  # `words` includes `signals`
CHECKS: tuple[Check, ...] = get_args(Check)
MAX_ATTEMPTS = 5  # to speak a clause
ATTEMPTS = 2
MAX_HOLD_S = 60.0  # of the speech of a clause that is held back
# From the mildest to the worst. `repetition` and `ceiling`: this limit of the server has ended the speech.
Fault = Literal["clipping", "abrupt_end", "too_slow", "too_fast", "words", "hum", "silence", "repetition", "ceiling"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
# Reasons why the words of a clause were not checked: the recogniser does not know the language; most of the text is
# digits and symbols; the recogniser failed; the speech is too long for it; a limit has ended the speech.
Unchecked = Literal["language", "digits", "checker", "too_long", "cut"]
UNCHECKED: tuple[Unchecked, ...] = get_args(Unchecked)
