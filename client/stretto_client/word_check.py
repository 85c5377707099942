"""Check of words: a recogniser transcribes the speech, and the transcript is compared with the text.

A recogniser that fails, or that does not answer in time, changes nothing: the speech is sent, and counts as unchecked.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stretto_client.checked_speech import MAX_JUDGED_S, Attempt, Judge
from stretto_client.errors import ClientError, ServerFull
from stretto_client.fair_threads import Turns
from stretto_client.recognisers import Ability, Address, Client, Recogniser, ServerRecogniser, WebRecogniser
from stretto_client.signals import Fault, as_floats
from stretto_client.transcript_errors import FAULT, MAX_LETTERS, error_size, is_comparable, spelling
from stretto_contract.finish_reasons import limit_of
from stretto_contract.joins import Join
from stretto_contract.languages import AUTO, code_name
from stretto_contract.pronunciation import Dictionary, Pronouncer
from stretto_contract.schema import SpeechOptions
from stretto_contract.scripts import foreign_words
from stretto_contract.speech_checks import Unchecked

LOG = logging.getLogger(__name__)
MAX_AT_ONCE = 4  # maximum number of checks of one client at once
PLACE_S = 5.0  # longest wait until fewer checks are running, which is no fault of the recogniser
ANSWER_S = 5.0  # longest wait for a transcript, beside the duration of the speech
PAUSE_S = 10.0  # time after a failure in which the recogniser is not asked, so that not every clause waits
ANY_WORD = "++"  # fits any word: phonemes have no letters to compare
MAX_SHOWN_CHARS = 300  # of an error in the log
COMPARING = Turns(1, "words")  # 300 letters take 2 ms, and MAX_LETTERS 60 ms


@dataclass(frozen=True)
class Verdict:
    """Result of a check.

    Attributes:
        size: Size of the largest error (`error_size`).
        unchecked: Reason why nothing was compared; None if the speech was checked.
    """

    size: int = 0
    transcript: str = ""
    unchecked: Unchecked | None = None

    @property
    def is_fault(self) -> bool:
        """True if words are missing, added or wrong."""
        return self.size >= FAULT


class Listener:
    """Recogniser at the address `name`, with limits on the number of concurrent requests and on their time."""

    def __init__(self, name: str, speaker: Client, connect: Callable[[str], Client]):
        try:
            address = Address.from_text(name)
        except ValueError as error:
            raise ValueError(f"check_with: {error}") from None
        self.speaker = speaker
        self._name = name
        self._languages = address.languages
        self._connected = connect(address.url.netloc) if address.url.scheme == "grpc" else None
        is_web = address.url.scheme.startswith("http")
        self._recogniser: Recogniser = (
            WebRecogniser(address) if is_web else ServerRecogniser(self._connected or speaker)
        )
        self._room = asyncio.Semaphore(MAX_AT_ONCE)
        self._is_failing = False
        self._asked_after_s = 0.0

    async def verdict(self, text: str, pcm: NDArray[np.float32], sample_rate: int, language: str) -> Verdict:
        """Compare speech, samples [n], with its text; `language` is its English name, or empty if unknown."""
        letters = spelling(text)
        if not is_comparable(letters):
            return Verdict(unchecked="digits")
        if len(letters) > MAX_LETTERS:
            return Verdict(unchecked="too_long")
        try:
            async with asyncio.timeout(PLACE_S):
                await self._room.acquire()
        except TimeoutError:
            return Verdict(unchecked="busy")
        try:
            heard = await self._heard(text, pcm, sample_rate, language)
        finally:
            self._room.release()
        if heard.unchecked is not None:
            return heard
        return replace(heard, size=await COMPARING.run(compared, letters, heard.transcript))

    async def _heard(self, text: str, pcm: NDArray[np.float32], sample_rate: int, language: str) -> Verdict:
        """Return the transcript of the speech, or the reason why there is none."""
        if time.monotonic() < self._asked_after_s:
            return Verdict(unchecked="checker")
        seconds = len(pcm) / sample_rate
        answer_s = ANSWER_S + seconds
        try:
            async with asyncio.timeout(answer_s):
                ability = await self._recogniser.ability()
                ability = replace(ability, languages=self._languages or ability.languages)
                reason = reason_against(ability, text, language, seconds)
                transcript = "" if reason else await self._recogniser.transcribe(pcm, sample_rate, language)
        except ServerFull:
            return Verdict(unchecked="busy")
        except (ClientError, ValueError, TimeoutError) as error:
            self._fail(str(error) or f"no transcript within {answer_s:g} s")
            return Verdict(unchecked="checker")
        self._is_failing = False
        return Verdict(transcript=transcript, unchecked=reason)

    async def close(self) -> None:
        """Close the connection to another server."""
        if self._connected is not None:
            await self._connected.close()

    def _fail(self, message: str) -> None:
        self._asked_after_s = time.monotonic() + PAUSE_S
        if not self._is_failing:
            # otherwise, another server's message could add lines to the log
            shown = [ascii(text)[1:-1][:MAX_SHOWN_CHARS] for text in (self._name, message)]
            LOG.warning("--check-with %s: %s; speech goes on unchecked", *shown)
        self._is_failing = True


def compared(letters: str, transcript: str) -> int:
    """Return the size of the largest error in a transcript; see `error_size`."""
    return error_size(letters, spelling(transcript)[: 2 * MAX_LETTERS])


def reason_against(ability: Ability, text: str, language: str, seconds: float) -> Unchecked | None:
    """Return the reason why a recogniser cannot transcribe speech of this text, or None."""
    if ability.longest_s and seconds > ability.longest_s:
        return "too_long"
    if not ability.languages or language in ability.languages:
        return None
    # A text of an unknown language is probably in the recogniser's if it has no letters of other scripts.
    return "language" if language or foreign_words(text) else None


class Listeners:
    """Recognisers of a client's speech, by their addresses."""

    def __init__(self, speaker: Client, connect: Callable[[str], Client]):
        self._speaker = speaker
        self._connect = connect
        self._listeners = dict[str, Listener]()

    def judge(self, name: str | None, options: SpeechOptions, join: Join) -> Judge:
        """Return the `Judge` of the words of a request; raise ValueError if `name` is no address of a recogniser."""
        if name is None:
            raise ValueError("check_with: expected the address of a recogniser, because check is 'words', got None")
        if name not in self._listeners:
            self._listeners[name] = Listener(name, self._speaker, self._connect)
        return Judge(WordCheck(self._listeners[name], options).measure, join)

    async def close(self) -> None:
        """Close the connections to other servers."""
        await asyncio.gather(*(listener.close() for listener in self._listeners.values()))


def spellings_of(entries: object) -> dict[str, str]:
    """Return the text that is read for each word of a dictionary; the server refuses invalid entries."""
    if not isinstance(entries, Mapping):
        return {}
    words = {word: value for word, value in entries.items() if isinstance(word, str) and word.strip()}
    return {word: value if isinstance(value, str) else ANY_WORD for word, value in words.items()}


class WordCheck:
    """Check of the words of one request, whose option `pronunciations` lists words that are read in another way."""

    def __init__(self, listener: Listener, options: SpeechOptions):
        self._listener = listener
        self._language = options.get("language")
        self._pronouncer = Pronouncer((Dictionary(spellings_of(options.get("pronunciations"))),))

    async def measure(self, attempt: Attempt, report: dict[str, Any]) -> None:
        """Compare the speech of a clause with its text, and add the result to the attempt."""
        verdict = await self._verdict(attempt, report)
        if verdict.unchecked is not None:
            attempt.report["unchecked"] = [verdict.unchecked]
        if verdict.is_fault:
            attempt.error_size = verdict.size
            attempt.faults.append(Fault("words", 0.0, attempt.seconds))
            attempt.report["transcripts"] = [verdict.transcript]

    async def _verdict(self, attempt: Attempt, report: dict[str, Any]) -> Verdict:
        if limit_of(report) is not None:
            return Verdict(unchecked="cut")
        if report.get("num_pieces", 1) > 1 or attempt.seconds > MAX_JUDGED_S:
            return Verdict(unchecked="too_long")
        pcm = np.concatenate(attempt.chunks) if attempt.chunks else np.zeros(0, np.float32)
        text, _, _ = self._pronouncer.after(attempt.text)
        return await self._listener.verdict(text, as_floats(pcm), attempt.sample_rate, await self._language_name())

    async def _language_name(self) -> str:
        """Return the English name of the text's language; AUTO for one of several, and empty if it is unknown."""
        named = code_name(self._language or AUTO)
        if named != AUTO:
            return named
        try:
            names = {*map(code_name, (await self._listener.speaker.profile()).languages)}
        except (ClientError, ValueError):
            names = set[str]()
        return AUTO if len(names) > 1 else "".join(names)
