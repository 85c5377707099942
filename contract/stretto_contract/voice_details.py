"""Facts about a voice that lists show."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VoiceDetails:
    """Language, gender and description of a voice, as its publisher states them; a field is empty if unknown.

    Attributes:
        language: Code of the speaker's language, such as `en` or `en-US`.
        gender: `female` or `male`.
        description: Sound and manner of the voice.
    """

    language: str = ""
    gender: str = ""
    description: str = ""


UNKNOWN_VOICE = VoiceDetails()
