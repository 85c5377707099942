"""Speaking options other than the voice's name; each is supported only by some families."""

from dataclasses import dataclass

from stretto.errors import InvalidRequest, shown
from stretto.families.base import Family
from stretto.records.sampling import OptionsRecord


@dataclass(frozen=True, slots=True)
class Manner:
    """Speaking options other than the voice.

    Attributes:
        language: Name of the language; None to let the model choose.
        instruct: Instructions on the speaking style; empty for none.
        is_streaming: True if text is read during generation (streamed text input) instead of entirely in the prompt.
        is_open: True if that text may also be continued by later requests.
        transliterates: True if scripts that the voice does not read are transliterated to Latin.
    """

    language: str | None = None
    instruct: str = ""
    is_streaming: bool = False
    is_open: bool = False
    transliterates: bool = False


PLAIN = Manner()
AUTO = "auto"  # lets the model choose the language


def read_manner(options: OptionsRecord, family: Family) -> Manner:
    """Return the speaking options; raise InvalidRequest if the family does not support one or its value."""
    return Manner(
        language=_language(options, family),
        instruct=_instruct(options, family),
        is_streaming=_is_streaming(options, family),
        is_open=options.get("text_mode") == "open",
        transliterates=_transliterates(options, family),
    )


def _language(options: OptionsRecord, family: Family) -> str | None:
    if "language" not in options:
        return None
    language = options["language"]
    name = language.lower() if isinstance(language, str) else language
    if not family.languages or name not in (AUTO, *family.languages):
        known = f"one of {', '.join((AUTO, *family.languages))}"
        expected = known if family.languages else "nothing: this model is not told a language"
        raise InvalidRequest("options.language", expected, shown(language))
    return None if name == AUTO else name


def _instruct(options: OptionsRecord, family: Family) -> str:
    instruct = options.get("instruct", "")
    if instruct and not family.takes_instructions:
        raise InvalidRequest("options.instruct", "nothing: this model takes no instructions", shown(instruct))
    return instruct


def _transliterates(options: OptionsRecord, family: Family) -> bool:
    transliterates = options.get("transliterate", False)
    if transliterates and not family.reads_latin_only:
        raise InvalidRequest("options.transliterate", "false or nothing: this model reads every script", "true")
    return transliterates


def _is_streaming(options: OptionsRecord, family: Family) -> bool:
    if "text_mode" not in options:
        return family.text_track is not None and family.text_track.is_usual
    if family.text_track is None:
        expected = "nothing: this model reads no text beside its frames"
        raise InvalidRequest("options.text_mode", expected, shown(options["text_mode"]))
    return options["text_mode"] != "whole"
