"""Speech of a server with faults that are put into it at known places, for measurements of the checks of speech.

The clause, the seed and the frames from which an attempt is sampled again determine its fault. A fault that begins
before such a frame stays; after it, the attempt may have another one. The server's speech is stored, so that an attempt
is the same in every run.
"""

import asyncio
import hashlib
import json
import random
import wave
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stretto.family.speech_limits import USUAL_LIMITS
from stretto_client import SpeechClient, SpeechEvent
from stretto_client.produced_speech import Items, ProducedSpeech
from stretto_client.speech_stream import SpeakOptions

RATE = 24_000  # Hz
FRAME_RATE = 80 / 3  # of the bundled model, per second
EVENT_S = 0.12
TURNS = 40  # of the event loop, so that each event is sent on before the next one is generated
LEVEL = 0.05  # root mean square of a hum, about that of speech
FULL_SCALE = 32_767

Samples = NDArray[np.int16]
Frames = tuple[int, ...]  # from each of which on an attempt is drawn anew


class Faulty(NamedTuple):
    """Faulty speech.

    Attributes:
        size: Size of the fault: seconds, repetitions, words, or the share of samples that are clipped.
        finish_reason: `stop`, or the limit at which the server would have ended the reply.
    """

    pcm: Samples
    start_s: float
    size: float
    finish_reason: str = "stop"


def hole(pcm: Samples, rng: random.Random) -> Faulty:
    """Put 1 to 8 s of silence into the speech."""
    seconds = 8 ** rng.random()
    return inserted(pcm, np.zeros(round(seconds * RATE), np.int16), rng)


def hum(pcm: Samples, rng: random.Random) -> Faulty:
    """Put 1 to 8 s of a buzz, or of a hiss, into the speech."""
    seconds = 8 ** rng.random()
    times = np.arange(round(seconds * RATE)) / RATE
    sound = np.random.default_rng(rng.randrange(1 << 30)).normal(size=len(times))
    if rng.random() < 0.7:
        pitch_hz = rng.uniform(80, 250)
        sound = sum(np.sin(2 * np.pi * pitch_hz * number * times) / number for number in range(1, 12)) + 0.01 * sound
    scaled = LEVEL * sound / np.sqrt(np.mean(np.square(sound)))
    return inserted(pcm, (FULL_SCALE * scaled).astype(np.int16), rng)


def inserted(pcm: Samples, sound: Samples, rng: random.Random) -> Faulty:
    place = round(rng.uniform(0.2, 0.8) * len(pcm))
    return Faulty(np.concatenate([pcm[:place], sound, pcm[place:]]), place / RATE, len(sound) / RATE)


def clipping(pcm: Samples, rng: random.Random) -> Faulty:
    """Amplify the speech from a place on, so that up to half of its samples are clipped."""
    place = round(rng.uniform(0.0, 0.7) * len(pcm))
    loud = np.abs(pcm[place:].astype(np.float64))
    gain = FULL_SCALE / np.quantile(loud, 1 - 0.01 * 50 ** rng.random())
    amplified = np.clip(gain * pcm[place:], -FULL_SCALE, FULL_SCALE).astype(np.int16)
    share = float(np.mean(np.abs(amplified) == FULL_SCALE))
    return Faulty(np.concatenate([pcm[:place], amplified]), place / RATE, share)


def loop(pcm: Samples, rng: random.Random) -> Faulty:
    """Repeat 0.2 to 0.9 s of the speech 3 to 30 times more, limited to the `loop_s` after which the server stops."""
    period = round(rng.uniform(0.2, 0.9) * RATE)
    place = round(rng.uniform(0.2, 0.8) * max(0, len(pcm) - period))
    repetitions = round(3 * 10 ** rng.random())
    repeated = np.tile(pcm[place : place + period], repetitions)
    latest = round(USUAL_LIMITS.loop_s * RATE)
    if len(repeated) >= latest:
        cut = np.concatenate([pcm[: place + period], repeated[:latest]])
        return Faulty(cut, place / RATE, repetitions, "repetition")
    return Faulty(np.concatenate([pcm[: place + period], repeated, pcm[place + period :]]), place / RATE, repetitions)


def abrupt_end(pcm: Samples, rng: random.Random) -> Faulty:
    """End the speech in the middle of a sound, at half of its duration or later."""
    size = round(0.02 * RATE)
    starts = range(len(pcm) // 2, len(pcm) - RATE // 3, size)
    levels = [np.square(pcm[start : start + size].astype(np.float64)).mean() for start in starts]
    loud = [start for start, power in zip(starts, levels, strict=True) if power > np.median(levels)]
    end = rng.choice(loud) + size
    return Faulty(pcm[:end], end / RATE, (len(pcm) - end) / RATE)


def skipped(words: list[str], rng: random.Random) -> list[str]:
    """Leave out one to three words."""
    number = min(rng.randint(1, 3), len(words) - 1)
    place = rng.randrange(len(words) - number + 1)
    return words[:place] + words[place + number :]


def doubled(words: list[str], rng: random.Random) -> list[str]:
    """Repeat one to three words."""
    number = min(rng.randint(1, 3), len(words))
    place = rng.randrange(len(words) - number + 1)
    return words[: place + number] + words[place:]


SOUNDS: dict[str, Callable[[Samples, random.Random], Faulty]] = {
    "hole": hole,
    "hum": hum,
    "clipping": clipping,
    "loop": loop,
    "abrupt_end": abrupt_end,
}
WORDS: dict[str, Callable[[list[str], random.Random], list[str]]] = {"skipped": skipped, "doubled": doubled}
TAILS = {"tail": range(1, 3), "endless": range(40, 41)}  # numbers of sentences after the end of the text
KINDS = (*SOUNDS, *WORDS, *TAILS)


@dataclass(frozen=True)
class Plan:
    """Choice of the faulty attempts.

    Attributes:
        share: Share of the attempts that are faulty.
        draw: Seed of the choice.
    """

    share: float = 0.0
    kinds: tuple[str, ...] = KINDS
    draw: int = 0

    def kind_of(self, text: str, seed: int, frames: Frames = ()) -> tuple[str | None, random.Random]:
        """Return the kind of fault after the last of `frames`, or None, and the generator for its size and place."""
        rng = random.Random(f"{self.draw} {seed} {text}{''.join(f' {frame}' for frame in frames)}")
        is_faulty = rng.random() < self.share
        kind = rng.choice(self.kinds)
        return (kind if is_faulty else None), rng


class Attempt(NamedTuple):
    """Attempt to speak a clause. `kind` is that of its fault, or None."""

    text: str
    kind: str | None
    speech: Faulty


class FaultyClient(SpeechClient):
    """Client that stores each reply of the server and puts faults into it.

    Attributes:
        attempts: All attempts to speak a clause. The `marker` of an event is the index of its attempt.
        generated_s: Duration of all speech up to the newest event, including attempts that were given up.
        others: Texts for the speech after the end of a text.
    """

    def __init__(self, server: str, folder: Path, others: list[str]):
        super().__init__(server)
        self.folder = folder
        self.others = others
        self.plan = Plan()
        self.attempts = list[Attempt]()
        self.generated_s = 0.0

    def speak_once(self, task: str, options: SpeakOptions, text: str, *_: Any, **__: Any) -> Any:
        """Speak a text, with a fault if the plan has one for this attempt."""
        return ProducedSpeech(partial(self._speak, text, options["seed"] or 0, tuple(options.get("redraw_from", ()))))

    async def _speak(self, text: str, seed: int, frames: Frames, items: Items) -> None:
        kind, speech = await self._faulty(text, seed, frames)
        marker = str(len(self.attempts))
        self.attempts.append(Attempt(text, kind, speech))
        report = {"finish_reason": speech.finish_reason, "seed": seed, "audio_s": len(speech.pcm) / RATE}
        size = round(EVENT_S * RATE)
        starts = range(0, len(speech.pcm), size)
        for index, start in enumerate(starts):
            part = speech.pcm[start : start + size]
            is_final = index == len(starts) - 1
            event = SpeechEvent(part, marker, index, "audio", start_s=start / RATE, sample_rate=RATE, marker=marker)
            event = replace(event, duration_s=len(part) / RATE, is_final=is_final, report=report if is_final else None)
            self.generated_s += event.duration_s
            await items.put(event)
            for _ in range(TURNS):
                await asyncio.sleep(0)

    async def _faulty(self, text: str, seed: int, frames: Frames) -> tuple[str | None, Faulty]:
        """Return the speech of an attempt, and the kind of its fault or None."""
        first_s = frames[-1] / FRAME_RATE if frames else 0.0
        if frames:
            kind, speech = await self._faulty(text, seed, frames[:-1])
            if kind is not None and speech.start_s < first_s:
                return kind, speech
        kind, rng = self.plan.kind_of(text, seed, frames)
        speech = await self._attempt(text, seed, frames, kind, rng)
        if kind is None or speech.start_s >= first_s:
            return kind, speech
        return None, Faulty(await self.speech(text, seed, frames), 0.0, 0.0)

    async def _attempt(self, text: str, seed: int, frames: Frames, kind: str | None, rng: random.Random) -> Faulty:
        """Return the speech of an attempt with a fault of this kind."""
        if kind in WORDS:
            mark = text[-1] if text[-1] in ".?!" else ""
            words = WORDS[kind](text.removesuffix(mark).split(), rng)
            spoken = await self.speech(" ".join(words).capitalize() + mark, seed, frames)
            return Faulty(spoken, 0.0, abs(len(words) - len(text.split())))
        pcm = await self.speech(text, seed, frames)
        if kind in SOUNDS:
            return SOUNDS[kind](pcm, rng)
        if kind in TAILS:
            latest = USUAL_LIMITS.max_frames(text, RATE)
            spoken = pcm
            for other in rng.choices(self.others, k=rng.choice(TAILS[kind])):
                if len(spoken) < latest:
                    spoken = np.concatenate([spoken, await self.speech(other, seed)])
            return limited(text, spoken, len(pcm) / RATE)
        return Faulty(pcm, 0.0, 0.0)

    async def speech(self, text: str, seed: int, frames: Frames = ()) -> Samples:
        """Return the server's speech, which is stored."""
        name = f"{seed} {text}" + "".join(f" {frame}" for frame in frames)
        path = self.folder / f"{hashlib.blake2b(name.encode(), digest_size=8).hexdigest()}.wav"
        if not path.exists():
            options: SpeakOptions = {"seed": seed, "redraw_from": [*frames], "output": {"encoding": "pcm_s16le"}}
            parts = list[Samples]()
            async for event in super().speak_once("tts", options, text):
                if event.pcm is not None:
                    parts.append(event.pcm)
                if event.report is not None and event.report["finish_reason"] != "stop":
                    print(json.dumps({"text": text, "seed": seed, "finish_reason": event.report["finish_reason"]}))
            write(path, np.concatenate(parts))
        with wave.open(str(path)) as stored:
            return np.frombuffer(stored.readframes(stored.getnframes()), np.int16)


def limited(text: str, pcm: Samples, end_s: float) -> Faulty:
    """Return speech that continues after the end of its text at `end_s`, up to the server's ceiling."""
    latest = USUAL_LIMITS.max_frames(text, RATE)
    reason = "ceiling" if len(pcm) >= latest else "stop"
    return Faulty(pcm[:latest], end_s, len(pcm[:latest]) / RATE - end_s, reason)


def write(path: Path, pcm: Samples) -> None:
    """Write a recording, which gets its name only once it is complete."""
    unfinished = path.with_suffix(".part")
    with wave.open(str(unfinished), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(pcm.tobytes())
    unfinished.rename(path)
