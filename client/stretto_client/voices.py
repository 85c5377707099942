"""Voices of a speech request: names, recordings, and voices selected by marks in its text."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

from numpy.typing import NDArray

from stretto_client.errors import RequestRefused
from stretto_client.model_profile import FetchProfile, ModelProfile
from stretto_contract.schema import expected_voices

Audio = str | Path | bytes | tuple[NDArray[Any], int]
MAX_MARKED_VOICES = 32  # different voices that the marks of one text select


@dataclass(frozen=True, slots=True, eq=False)
class RecordedVoice:
    """Voice given by a recording, for models that accept one in a system turn (`docs/families.md`).

    Attributes:
        audio: Path or contents of a file, or (samples [n], rate in Hz).
        text: Transcript of the recording. Higgs Audio requires it. Qwen3-TTS Base continues from it; without it, the
            recording only determines the sound of the voice. Other models do not use it.
    """

    audio: Audio
    text: str = ""


class MarkedVoice(NamedTuple):
    """Voice that a mark in a text selects by its name; `voice` is None for the model's default."""

    name: str
    voice: str | RecordedVoice | None


class MarkedVoices:
    """Voices that the marks of one text select, each of which is looked up once.

    Args:
        find: Function that returns the voice with a name; it raises an exception if the text may not use that name.
    """

    def __init__(self, find: Callable[[str], Awaitable[str | RecordedVoice | None]]):
        self._find = find
        self._voices = dict[str, MarkedVoice]()

    @classmethod
    def of_model(cls, fetch_profile: FetchProfile) -> Self:
        """Return voices that are looked up in the model's profile."""

        async def find(name: str) -> str:
            return models_voice(await fetch_profile(), name)

        return cls(find)

    @property
    def chosen(self) -> list[MarkedVoice]:
        """The voices that the marks have selected so far."""
        return [*self._voices.values()]

    async def choose(self, name: str | None) -> MarkedVoice | None:
        """Return the voice with a name; None without a name, for the voice of the request.

        It raises RequestRefused if the text has too many voices, and the exceptions of `find`.
        """
        if name is None:
            return None
        if name not in self._voices:
            if len(self._voices) == MAX_MARKED_VOICES:
                raise RequestRefused(f"text.voice: expected at most {MAX_MARKED_VOICES} different voices, got more")
            self._voices[name] = MarkedVoice(name, await self._find(name))
        return self._voices[name]

    async def choose_all(self, names: Iterable[str]) -> list[MarkedVoice]:
        """Return the voices with these names; see `choose` for exceptions."""
        return [voice for name in names if (voice := await self.choose(name)) is not None]


def models_voice(profile: ModelProfile, name: str) -> str:
    """Return the model's spelling of a voice's name, given in any letter case; raise RequestRefused if it has none.

    If a reply may have several voices, the names are separated by commas.
    """
    by_name = {voice.casefold(): voice for voice in profile.voices}
    names = [word.strip().casefold() for word in name.split(",")] if profile.max_voices > 1 else [name.casefold()]
    if len(names) > profile.max_voices or any(word not in by_name for word in names):
        expected = expected_voices(profile.voices, profile.max_voices) if profile.voices else "no voice (it has none)"
        raise RequestRefused(f"text.voice: expected {expected}, got {name!r}")
    return ",".join(by_name[word] for word in names)
