"""Pipecat pipelines with the plug-in, which `integrations/test_plugins.py` runs in Pipecat's environment."""

import asyncio
import json
import sys
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from loguru import logger
from relay import Relay
from report import TEXT, URL, attempt, report, report_audio

logger.remove()
logger.add(sys.stderr, level="WARNING")

from bot import make_worker  # noqa: E402
from pipecat.frames.frames import (  # noqa: E402
    EndFrame,
    ErrorFrame,
    Frame,
    InterruptionFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    TTSUpdateSettingsFrame,
)
from pipecat.pipeline.pipeline import Pipeline  # noqa: E402
from pipecat.pipeline.worker import PipelineParams, PipelineWorker  # noqa: E402
from pipecat.processors.filters.identity_filter import IdentityFilter  # noqa: E402
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor  # noqa: E402
from pipecat.utils.errors import ErrorCategory  # noqa: E402
from pipecat.workers.runner import WorkerRunner  # noqa: E402
from pipecat_stretto import StrettoTTSService  # noqa: E402

LONG = " ".join([TEXT] * 30)


class Recorder(FrameProcessor):
    """Recorder of frames that pass downstream."""

    def __init__(self, frames: asyncio.Queue):
        super().__init__()
        self._frames = frames

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction is FrameDirection.DOWNSTREAM:
            self._frames.put_nowait(frame)
        await self.push_frame(frame, direction)


@dataclass
class Bot:
    """A running pipeline with one speech service."""

    worker: PipelineWorker
    frames: asyncio.Queue = field(default_factory=asyncio.Queue)

    async def write(self, text: str) -> None:
        """Send text as a language model does, in pieces that end anywhere."""
        for start in range(0, len(text), 5):
            await self.worker.queue_frame(LLMTextFrame(text[start : start + 5]))

    async def reply(self, text: str) -> list[Frame]:
        """Speak a reply, and return its frames."""
        await self.worker.queue_frame(LLMFullResponseStartFrame())
        await self.write(text)
        await self.worker.queue_frame(LLMFullResponseEndFrame())
        return await self.until(LLMFullResponseEndFrame)

    async def until(self, kind: type[Frame]) -> list[Frame]:
        """Return the frames up to the first of this kind."""
        passed: list[Frame] = []
        while not passed or not isinstance(passed[-1], kind):
            passed.append(await self.frames.get())
        return passed


def spoken(frames: list[Frame]) -> str:
    """Return the text of the words among the frames."""
    return " ".join(frame.text.strip() for frame in frames if isinstance(frame, TTSTextFrame))


def sound(frames: list[Frame]) -> bytes:
    return b"".join(frame.audio for frame in frames if isinstance(frame, TTSAudioRawFrame))


def used_s() -> float:
    """Return the seconds of audio that the gateway has generated."""
    with urllib.request.urlopen(f"{URL}/v1/usage") as answer:
        return json.load(answer)["output_audio_s"]


async def run(url: str, drive: Callable[[Bot], Awaitable[None]], **settings: object) -> None:
    """Run `drive` alongside a pipeline with the service."""
    service = StrettoTTSService(base_url=url, settings=StrettoTTSService.Settings(**settings))
    frames: asyncio.Queue = asyncio.Queue()
    worker = PipelineWorker(
        Pipeline([service, Recorder(frames)]),
        params=PipelineParams(audio_out_sample_rate=24_000),
        cancel_on_idle_timeout=False,
        enable_rtvi=False,
    )

    @worker.event_handler("on_pipeline_error")
    async def on_error(_: object, frame: ErrorFrame) -> None:
        frames.put_nowait(frame)

    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        await asyncio.wait_for(drive(Bot(worker, frames)), 200)
    finally:
        await worker.queue_frame(EndFrame())
        await asyncio.wait_for(running, 60)


async def speak_two_turns(relay: Relay, bot: Bot) -> None:
    for turn in ("first turn", "second turn"):
        frames = await bot.reply(TEXT)
        assert spoken(frames) == TEXT, spoken(frames)
        times = [frame.pts for frame in frames if isinstance(frame, TTSTextFrame)]
        assert times == sorted(set(times)), times
        report_audio(turn, sound(frames), "pcm")
    (stopped,) = (frame for frame in frames if isinstance(frame, TTSStoppedFrame))
    report("report", value="faults" in stopped.metadata["stretto"] or stopped.metadata["stretto"] == {})
    report("one connection", value=relay.num_connections == 1)


async def interrupt(relay: Relay, bot: Bot) -> None:
    begun_s = used_s()
    await bot.worker.queue_frame(LLMFullResponseStartFrame())
    await bot.write(LONG)
    frames = await bot.until(TTSTextFrame)
    frames += await bot.until(TTSTextFrame)
    await bot.worker.queue_frame(InterruptionFrame())
    frames += await bot.until(InterruptionFrame)
    heard = spoken(frames)
    assert heard
    assert LONG.startswith(heard), heard
    after = await bot.reply(TEXT)
    assert spoken(after) == TEXT, spoken(after)
    seconds = len(sound(after)) / 48_000
    assert used_s() - begun_s - seconds < 15 * seconds, (begun_s, used_s(), seconds)
    report("interrupted", value=True)
    report("connection after an interruption", value=relay.num_connections == 1)


async def change_settings(bot: Bot) -> None:
    slow = sound(await bot.reply(TEXT))
    again = sound(await bot.reply(TEXT))
    assert len(slow) == len(again), (len(slow), len(again))
    levels = (np.frombuffer(data, "<i2").astype(int) for data in (slow, again))
    assert abs(np.subtract(*levels)).max() <= 2  # rounding, which depends on when the audio was decoded
    await bot.worker.queue_frame(TTSUpdateSettingsFrame(delta=StrettoTTSService.Settings(speed=2.0)))
    fast = sound(await bot.reply(TEXT))
    assert 0.4 < len(fast) / len(slow) < 0.6, (len(fast), len(slow))
    report("settings", value=True)


async def speak_within_a_reply(bot: Bot) -> None:
    await bot.worker.queue_frame(LLMFullResponseStartFrame())
    await bot.write("It is twenty past nine. ")
    await bot.worker.queue_frame(TTSSpeakFrame("One moment."))
    await bot.write("The garden door is open.")
    await bot.worker.queue_frame(LLMFullResponseEndFrame())
    frames = await bot.until(LLMFullResponseEndFrame)
    told = [frame for frame in frames if isinstance(frame, TTSTextFrame)]
    reply = spoken([frame for frame in told if frame.context_id == told[0].context_id])
    aside = spoken([frame for frame in told if frame.context_id != told[0].context_id])
    assert (reply, aside) == ("It is twenty past nine. The garden door is open.", "One moment."), (reply, aside)
    times = [frame.pts for frame in told]
    assert times == sorted(set(times)), times
    report("speech within a reply", value=True)


async def survive(relay: Relay, bot: Bot) -> None:
    await bot.reply(TEXT)
    relay.cut()
    await bot.until(ErrorFrame)
    frames = await bot.reply(TEXT)
    report("after a restart", value=spoken(frames) == TEXT)
    await bot.worker.queue_frame(LLMFullResponseStartFrame())
    await bot.write(LONG)
    await bot.until(TTSAudioRawFrame)
    relay.cut()
    await bot.worker.queue_frame(LLMFullResponseEndFrame())
    error = (await bot.until(ErrorFrame))[-1]
    await bot.until(LLMFullResponseEndFrame)
    assert not error.category.is_permanent, error.category
    report("after a restart within a reply", value=spoken(await bot.reply(TEXT)).endswith(TEXT))


async def refuse_voice(bot: Bot) -> None:
    await bot.worker.queue_frame(LLMFullResponseStartFrame())
    await bot.write(TEXT)
    await bot.worker.queue_frame(LLMFullResponseEndFrame())
    error = (await bot.until(ErrorFrame))[-1]
    assert error.category is ErrorCategory.INVALID_REQUEST, error.category
    report("unknown voice", value="voice: expected one of" in error.error)


async def refuse_text(bot: Bot) -> None:
    await bot.worker.queue_frame(TTSSpeakFrame("a" * 100_001))
    error = (await bot.until(ErrorFrame))[-1]
    assert error.category is ErrorCategory.APPLICATION, error.category
    report("text that is too long", value=spoken(await bot.reply(TEXT)).endswith(TEXT))


async def main() -> None:
    relay = Relay(URL)
    url = await relay.start()
    with attempt("two turns"):
        await run(url, partial(speak_two_turns, relay))
    relay.num_connections = 0
    with attempt("interrupted"):
        await run(url, partial(interrupt, relay))
    with attempt("settings"):
        await run(url, change_settings, seed=3, language="en", voice="alloy", extra={"temperature": 0.7})
    with attempt("speech within a reply"):
        await run(url, speak_within_a_reply)
    with attempt("after a restart"):
        await run(url, partial(survive, relay))
    with attempt("unknown voice"):
        await run(url, refuse_voice, voice="nobody")
    with attempt("text that is too long"):
        await run(url, refuse_text)
    with attempt("example"):
        report("example", value=bool(make_worker(url, IdentityFilter(), IdentityFilter())))


asyncio.run(main())
