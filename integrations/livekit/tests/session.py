"""LiveKit sessions with the plug-in, which `integrations/test_plugins.py` runs in LiveKit's environment."""

import asyncio
import json
import logging
import time
import urllib.request
from functools import partial

from bot import make_session
from livekit import rtc
from livekit.agents import Agent, AgentSession, APIConnectionError, APIStatusError, metrics
from livekit.agents.types import USERDATA_TIMED_TRANSCRIPT, APIConnectOptions, TimedString
from livekit.agents.utils import http_context
from livekit.agents.voice import io
from livekit.agents.voice.transcription import TranscriptSynchronizer
from livekit.plugins import stretto
from relay import Relay
from report import TEXT, URL, attempt, report, report_audio

logging.basicConfig(level=logging.WARNING)
LONG = " ".join([TEXT] * 30)
ONCE = APIConnectOptions(max_retry=0)


class Loudspeaker(io.AudioOutput):
    """Output that takes as long as playing the audio would."""

    def __init__(self) -> None:
        super().__init__(label="loudspeaker", capabilities=io.AudioOutputCapabilities(pause=False), sample_rate=24_000)
        self._begun_s: float | None = None
        self._pushed_s = 0.0
        self._playing: asyncio.Task[None] | None = None

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        await super().capture_frame(frame)
        if self._begun_s is None:
            self._begun_s = time.monotonic()
            self.on_playback_started(created_at=time.time())
        self._pushed_s += frame.duration

    def flush(self) -> None:
        super().flush()
        if self._begun_s is not None:
            self._playing = asyncio.create_task(self._play(self._begun_s + self._pushed_s - time.monotonic()))

    async def _play(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
        self._end(interrupted=False)

    def clear_buffer(self) -> None:
        if self._playing is not None:
            self._playing.cancel()
        if self._begun_s is not None:
            self._end(interrupted=True)

    def _end(self, interrupted: bool) -> None:
        position_s = min(self._pushed_s, time.monotonic() - self._begun_s)
        self._begun_s = None
        self._pushed_s = 0.0
        self.on_playback_finished(playback_position=position_s, interrupted=interrupted)


class Captions(io.TextOutput):
    """Output that keeps the words that have been played."""

    def __init__(self) -> None:
        super().__init__(label="captions", next_in_chain=None)
        self.text = ""
        self.has_words = asyncio.Event()

    async def capture_text(self, text: str) -> None:
        self.text += text
        if len(self.text) > 30:
            self.has_words.set()

    def flush(self) -> None:
        pass


def used_s() -> float:
    """Return the seconds of audio that the gateway has generated."""
    with urllib.request.urlopen(f"{URL}/v1/usage") as answer:
        return json.load(answer)["output_audio_s"]


async def speak(tts: stretto.TTS, text: str) -> tuple[bytes, list[TimedString]]:
    """Return the audio and the words of a text that is pushed in pieces."""
    async with tts.stream(conn_options=ONCE) as stream:
        for start in range(0, len(text), 5):
            stream.push_text(text[start : start + 5])
        stream.end_input()
        sound = b""
        words: list[TimedString] = []
        async for event in stream:
            sound += event.frame.data.tobytes()
            words += event.frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, ())
    return sound, words


async def speak_two_turns(relay: Relay, tts: stretto.TTS) -> None:
    reports: list[dict] = []
    measured: list[metrics.TTSMetrics] = []
    tts.on("speech_done", reports.append)
    tts.on("metrics_collected", measured.append)
    for turn in ("first turn", "second turn"):
        sound, words = await speak(tts, TEXT)
        assert "".join(words) == TEXT, words
        times = [word.start_time for word in words]
        assert times == sorted(set(times)), words
        report_audio(turn, sound, "pcm")
    report("reports", value=len(reports) == 2)
    report("metrics", value=[one.connection_reused for one in measured] == [False, True])
    whole = (await tts.synthesize(f"  {TEXT}").collect()).data.tobytes()
    report_audio("whole text", whole, "pcm")
    tts.update_options(speed=2.0)
    fast, _ = await speak(tts, TEXT)
    report("speed", value=0.4 < len(fast) / len(sound) < 0.6)
    async with tts.stream() as stream:
        stream.push_text("  ")
        stream.end_input()
        report("blank text", value=[event async for event in stream] == [])
    report("one connection", value=relay.num_connections == 1)


async def interrupt(relay: Relay, tts: stretto.TTS) -> None:
    captions = Captions()
    synchronizer = TranscriptSynchronizer(next_in_chain_audio=Loudspeaker(), next_in_chain_text=captions)
    session = AgentSession(tts=tts, use_tts_aligned_transcript=True)
    session.output.audio = synchronizer.audio_output
    session.output.transcription = synchronizer.text_output
    await session.start(Agent(instructions="Speak."), record=False)
    await session.say(TEXT)
    told = session.history.items[-1].text_content
    assert told == TEXT, told
    begun_s = used_s()
    captions.has_words.clear()
    captions.text = ""
    speech = session.say(LONG)
    await captions.has_words.wait()
    speech.interrupt()
    await speech
    message = session.history.items[-1]
    assert message.interrupted
    assert len(message.text_content) > 20, message
    assert LONG.startswith(message.text_content.strip()), message
    report("interrupted", value=True)
    await asyncio.gather(*tts._settling)
    sound, words = await speak(tts, TEXT)
    assert "".join(words) == TEXT, words
    assert used_s() - begun_s < 15 * len(sound) / 48_000, (begun_s, used_s())
    report("connection after an interruption", value=relay.num_connections == 1)
    await session.aclose()
    await synchronizer.aclose()


async def survive(relay: Relay, tts: stretto.TTS) -> None:
    await speak(tts, TEXT)
    relay.cut()
    stream = tts.stream()
    stream.push_text(TEXT)
    stream.end_input()
    words = [word async for event in stream for word in event.frame.userdata.get(USERDATA_TIMED_TRANSCRIPT, ())]
    report("after a restart", value="".join(words) == TEXT)
    stream = tts.stream(conn_options=ONCE)
    stream.push_text(LONG)
    await anext(stream)
    relay.cut()
    try:
        async for _ in stream:
            pass
    except APIConnectionError as error:
        report("after a restart within a reply", value=error.retryable)


async def refuse(tts: stretto.TTS, text: str, message: str, step: str) -> None:
    try:
        await tts.synthesize(text).collect()
    except APIStatusError as error:
        is_final = error.status_code == 400 and not error.retryable
        report(step, value=is_final and error.message.startswith(message))


async def main() -> None:
    relay = Relay(URL)
    url = await relay.start()
    async with http_context.open():
        steps = {
            "two turns": (partial(speak_two_turns, relay), {"voice": "alloy", "language": "en", "seed": 3}),
            "interrupted": (partial(interrupt, relay), {}),
            "after a restart": (partial(survive, relay), {}),
            "unknown voice": (
                partial(refuse, text=TEXT, message="voice: expected one of", step="unknown voice"),
                {"voice": "nobody"},
            ),
            "text that is too long": (
                partial(refuse, text="a" * 100_001, message="text: expected at most", step="text that is too long"),
                {},
            ),
        }
        for step, (drive, fields) in steps.items():
            relay.num_connections = 0
            tts = stretto.TTS(base_url=url, **fields)
            with attempt(step):
                await asyncio.wait_for(drive(tts), 200)
            await tts.aclose()
        with attempt("example"):
            await make_session().aclose()
            report("example", value=True)
        with attempt("no server"):
            tts = stretto.TTS(base_url="http://127.0.0.1:9/v1")
            try:
                await speak(tts, TEXT)
            except APIConnectionError as error:
                report("no server", value=error.retryable)


asyncio.run(main())
