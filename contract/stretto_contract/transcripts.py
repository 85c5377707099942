"""Parts of transcripts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Passage:
    """Part of a transcript, by one speaker.

    Attributes:
        start_s: Start in the recording.
        end_s: End in the recording.
        speaker: Name or number of the speaker; empty if unknown.
    """

    text: str
    start_s: float
    end_s: float
    speaker: str = ""
