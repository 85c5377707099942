"""How a reply is to be spoken, beside the voice's name: options that only some families know."""

from dataclasses import dataclass

from stretto.errors import InvalidRequest, shown
from stretto.families.base import Family
from stretto.records.options import OptionsRecord


@dataclass(frozen=True, slots=True)
class Manner:
    """Options of speech beside the voice.

    language: by name, None to leave it to the model. instruct: how to speak, in words; '' for nothing. is_streaming:
    whether words are read one by one beside the frames, and not all before the first. is_open: whether they are, and
    are being written meanwhile. transliterates: whether letters that the voice does not read are spelled in Latin ones.
    """

    language: str | None = None
    instruct: str = ""
    is_streaming: bool = False
    is_open: bool = False
    transliterates: bool = False


PLAIN = Manner()
AUTO = "auto"  # the name of no language


def read_manner(options: OptionsRecord, family: Family) -> Manner:
    """What `options` say of it; InvalidRequest where the family does not know an option, or what it says."""
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
