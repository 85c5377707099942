"""Checks of speech while it is generated, and the faults that they find."""

from dataclasses import dataclass
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
# digits and symbols; the recogniser failed; it was busy; the speech is too long for it; a limit has ended the speech.
Unchecked = Literal["language", "digits", "checker", "busy", "too_long", "cut"]
UNCHECKED: tuple[Unchecked, ...] = get_args(Unchecked)


@dataclass(frozen=True)
class SignalLimits:
    """Limits beyond which speech is faulty. The defaults are for speech of any voice and style; a family
    may have narrower ones, measured in its own speech.

    Attributes:
        silence_s: Longest silence, in seconds.
        hum_s: Longest sound with an unchanged spectrum, in seconds.
        hum_db: Mean difference of the bands of a block from the running mean of the blocks before it, in dB, from which
            on the spectrum has changed.
        clipped_share: Largest share of clipped samples.
        end_db: The last 20 ms must be more than this number of dB below the loudest block.
        least_unit_s: Shortest time in which a unit of the text (`spoken_units`) is spoken, in seconds.
        most_unit_s: Longest such time.
        min_units: Smallest number of units for which the speed is measured.
    """

    silence_s: float = 2.0
    hum_s: float = 1.5
    hum_db: float = 2.5
    clipped_share: float = 0.005
    end_db: float = 6.0
    least_unit_s: float = 0.02
    most_unit_s: float = 0.21
    min_units: int = 20


USUAL_SIGNALS = SignalLimits()
