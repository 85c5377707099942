"""Checks of speech while it is generated, and the faults that they find."""

from typing import Literal, get_args

Check = Literal["off", "signals"]
CHECKS: tuple[Check, ...] = get_args(Check)
MAX_ATTEMPTS = 5  # to speak a clause
ATTEMPTS = 2
# `ceiling` and `repetition`: this limit of the server has ended the speech (`finish_reason`).
Fault = Literal["silence", "hum", "clipping", "abrupt_end", "too_fast", "too_slow", "ceiling", "repetition"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
# Reasons why the words of a clause were not checked: the recogniser does not know the language; most of the text is
# digits and symbols; the recogniser failed; the speech is too long for it; a limit has ended the speech.
Unchecked = Literal["language", "digits", "checker", "too_long", "cut"]
UNCHECKED: tuple[Unchecked, ...] = get_args(Unchecked)
