"""Maximum length of speech that reads a text aloud."""

from dataclasses import dataclass
from math import ceil

from stretto_contract.spoken_units import pauses_s, spoken_units


@dataclass(frozen=True)
class SpeechLimits:
    """Maximum length of speech that reads a text aloud. A reply stops there even if the model misses its end.

    The defaults are for any voice and style: a third of the usual speed, some seconds for breaths and pauses, and no
    sound that is held for seconds.

    Attributes:
        base_s: Seconds that every text may take, beside those of its units and pauses.
        unit_s: Further seconds for each unit of the text (`spoken_units`).
        loop_s: Longest repetition of the same codes of the first codebook, in seconds.
        period_s: Longest sequence of codes of which a repetition consists, in seconds.
    """

    base_s: float = 5.0
    unit_s: float = 0.21
    loop_s: float = 5.0
    period_s: float = 1.0

    def max_frames(self, text: str, frame_rate: float) -> int:
        """Return the largest number of frames for a text."""
        return ceil((self.base_s + self.unit_s * spoken_units(text) + pauses_s(text)) * frame_rate)


USUAL_LIMITS = SpeechLimits()
