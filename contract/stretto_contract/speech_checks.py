"""Checks of speech while it is generated, and the faults that they detect."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from stretto_contract.spoken_units import spoken_units

Check = Literal["off", "signals", "words"]  # `words` includes `signals`
CHECKS: tuple[Check, ...] = get_args(Check)
MAX_ATTEMPTS = 5  # maximum number of attempts to speak a clause
ATTEMPTS = 2
MAX_HOLD_S = 60.0  # maximum speech of a clause that is held back
# From the mildest to the worst. `repetition` and `ceiling`: this limit of the server has ended the speech.
Fault = Literal["clipping", "abrupt_end", "too_slow", "too_fast", "words", "hum", "silence", "repetition", "ceiling"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
# Reasons why the words of a clause were not checked: the recogniser does not know the language; most of the text is
# digits and symbols; the recogniser failed; it was busy; the speech is too long for it; a limit has ended the speech.
Unchecked = Literal["language", "digits", "checker", "busy", "too_long", "cut"]
UNCHECKED: tuple[Unchecked, ...] = get_args(Unchecked)

APOSTROPHE = re.compile("['’]")
MARKS = re.compile(r"([^\w\s])[^\w\s]*")  # marks in a row; only the first counts
ACRONYM = re.compile(r"\w[A-Z]")


@dataclass(frozen=True)
class Pace:
    """Duration of the sound of a text that one voice speaks.

    Attributes:
        seconds: Seconds for each occurrence of a sequence of characters. The text is in lower case, without
            apostrophes, with a space on both sides of each word and mark. The empty sequence occurs once.
        least: Minimum ratio of the duration of correct speech to the expected one.
        most: Maximum ratio.
    """

    seconds: Mapping[str, float]
    least: float
    most: float

    def counts(self, text: str) -> list[int] | None:
        """Return the number of occurrences of each sequence; None for texts with acronyms or unknown characters."""
        words = MARKS.sub(r" \1 ", APOSTROPHE.sub("", text.lower())).split()
        spaced = f" {' '.join(words)} "
        if ACRONYM.search(text) or not self.seconds.keys() >= {*spaced}:
            return None
        return [spaced.count(sequence) if sequence else 1 for sequence in self.seconds]

    def bounds_s(self, text: str) -> tuple[float, float]:
        """Return the minimum and the maximum duration of a text; 0 and infinity if they are unknown."""
        counts = self.counts(text)
        if counts is None:
            return 0.0, math.inf
        expected_s = sum(count * seconds for count, seconds in zip(counts, self.seconds.values(), strict=True))
        return self.least * expected_s, self.most * expected_s


@dataclass(frozen=True)
class SignalLimits:
    """Limits beyond which speech is faulty.

    The defaults are for speech of any voice and style. A family may have narrower ones, measured in its own speech.

    Attributes:
        silence_s: Longest silence.
        hum_s: Longest sound with an unchanged spectrum.
        hum_db: Minimum change of the spectrum, in dB: mean difference of the bands of a block from the running mean of
            the blocks before it.
        clipped_share: Largest share of clipped samples.
        end_db: The last 20 ms must be more than this number of dB below the loudest block.
        least_unit_s: Shortest time in which a unit of the text (`spoken_units`) is spoken.
        most_unit_s: Longest such time.
        min_units: Smallest number of units for which the speed is measured.
        pace: Duration of the texts of a model with one voice, which narrows the limits of the speed; None for others.
    """

    silence_s: float = 2.0
    hum_s: float = 1.5
    hum_db: float = 2.5
    clipped_share: float = 0.005
    end_db: float = 6.0
    least_unit_s: float = 0.02
    most_unit_s: float = 0.21
    min_units: int = 20
    pace: Pace | None = None

    def durations_s(self, text: str) -> tuple[float, float]:
        """Return the minimum and the maximum duration of faultless speech of a text, without silence."""
        num_units = spoken_units(text)
        if num_units < self.min_units:
            return 0.0, math.inf
        shortest_s, longest_s = self.pace.bounds_s(text) if self.pace else (0.0, math.inf)
        return max(shortest_s, self.least_unit_s * num_units), min(longest_s, self.most_unit_s * num_units)


USUAL_SIGNALS = SignalLimits()
