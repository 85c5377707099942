"""Clauses of a text that continue the speech of an earlier clause, if the model can (`TaskProfile.continues`).

The request of a clause contains the text and the codes of an earlier clause: the last one in the same voice that ended
by itself, without faults, within MAX_BEFORE_S. That clause is sent whole, because the text of a part of its codes is
unknown. Abandoned attempts are never continued, so that the same text and seed give the same speech.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stretto_client.errors import RequestRefused
from stretto_client.model_profile import ModelProfile, TaskProfile
from stretto_client.speech_stream import Earlier, SpeakOptions, SpeechEvent
from stretto_client.ssml import MARKS
from stretto_client.tries import Speak
from stretto_client.voices import MarkedVoice
from stretto_contract.joins import Join
from stretto_contract.spoken_units import spoken_units

MAX_BEFORE_S = 20.0  # longest clause that the next one continues, in seconds
FIRST = Earlier("tts", "user", ())
CLAUSE_UNITS = 240  # longest clause, in `spoken_units`, so that its speech usually takes 14 s


def independent_only(profile: ModelProfile, has_voice: bool = False) -> str:
    """Return the expected `join` for a model that cannot continue speech, or not in a requested voice (`has_voice`)."""
    return f"independent ({profile.family!r} cannot continue speech{' in a requested voice' * has_voice})"


def reads_either(task: TaskProfile, voice: object) -> bool:
    """Return True if the model reads earlier speech as a voice, but the request already has a voice."""
    return voice is not None and task.continues == "voice"


def continuing_task(profile: ModelProfile) -> TaskProfile | None:
    """Return the task whose clauses may continue earlier ones; None if the model has none."""
    return next((task for task in profile.tasks if task.continues), None)


def clause_chars(text: str, max_chars: int, join: Join) -> int:
    """Return the maximum number of characters in a clause of `text`; continued clauses are shorter."""
    if join == "independent":
        return max_chars
    return min(max_chars, max(1, round(CLAUSE_UNITS * len(text) / max(1.0, spoken_units(text)))))


def continued(speak: Speak, join: Join, profile: Callable[[], Awaitable[ModelProfile]], options: SpeakOptions) -> Speak:
    """Return `speak` unchanged or, if clauses continue earlier ones, a ContinuedSpeech."""
    return speak if join == "independent" else ContinuedSpeech(speak, profile, options)


def is_whole(report: dict[str, Any]) -> bool:
    """Return True if a report describes a clause that was spoken completely, ended by itself and has no fault."""
    return report.get("finish_reason") == "stop" and not report.get("faults") and report.get("num_pieces", 1) == 1


@dataclass(frozen=True, slots=True, eq=False)
class Spoken:
    """Clause that has been spoken, and its codes, int32 [S, T]."""

    text: str
    codes: NDArray[np.int32]

    def earlier(self, task: TaskProfile) -> Earlier:
        """Return the request field that makes a clause of `task` continue this one."""
        codes = {"codes": self.codes.tolist()}
        text = {"text": self.text}
        if task.continues == "voice":
            words = text if "text" in task.system else {}
            return Earlier(task.name, task.answers, ({"role": "system"} | words | codes,))
        if task.answers == "assistant":
            return Earlier(task.name, task.answers, ({"role": "assistant"} | text | codes,))
        return Earlier(task.name, task.answers, ({"role": "user"} | text, {"role": "assistant"} | codes))


class ContinuedSpeech:
    """Function that speaks the clauses of a text; each clause continues an earlier one.

    Args:
        speak: Function that speaks a clause. Its keyword `earlier` is the speech to continue;
            the events then have codes.
        options: Options of the whole text. If they have a voice and the model reads earlier speech as a voice, nothing
            is continued.
    """

    def __init__(self, speak: Speak, profile: Callable[[], Awaitable[ModelProfile]], options: SpeakOptions):
        self._speak = speak
        self._profile = profile
        self._voice = options.get("voice")
        self._sends_codes = bool(options.get("output", {}).get("codes"))
        self._spoken = dict[str | None, Spoken]()  # last clause by name of the voice; None for that of the options

    @asynccontextmanager
    async def __call__(
        self, text: str, voice: MarkedVoice | None = None, **arguments: Any
    ) -> AsyncIterator[AsyncIterator[SpeechEvent]]:
        """Speak a clause, and keep its speech as the context of the next one in the same voice."""
        task = await self._task()
        name = None
        chosen = self._voice
        if voice is not None:
            name = voice.name
            chosen = voice.voice
            arguments["voice"] = voice
        arguments["earlier"] = FIRST
        if name in self._spoken and not reads_either(task, chosen):
            arguments["earlier"] = self._spoken[name].earlier(task)
        async with (
            self._speak(text, **arguments) as stream,
            aclosing(self._followed(text, name, stream)) as events,
        ):
            yield events

    async def _task(self) -> TaskProfile:
        profile = await self._profile()
        task = continuing_task(profile)
        if task is None:
            raise RequestRefused(f"join: expected {independent_only(profile)}, got 'continued'")
        return task

    async def _followed(
        self, text: str, name: str | None, stream: AsyncIterator[SpeechEvent]
    ) -> AsyncGenerator[SpeechEvent, None]:
        """Yield the events of a clause in the voice `name`, and keep the clause if the next one may continue it."""
        codes = list[NDArray[np.int32]]()
        async for event in stream:
            is_short = event.start_s + event.duration_s <= MAX_BEFORE_S
            if event.codes is not None and is_short:
                codes.append(event.codes)
            if event.report is not None and is_whole(event.report) and codes and is_short:
                self._spoken[name] = Spoken(text.translate(MARKS), np.concatenate(codes, axis=1))
            yield event if self._sends_codes else replace(event, codes=None)
