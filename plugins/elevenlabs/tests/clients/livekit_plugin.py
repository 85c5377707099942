"""LiveKit Agents: its ElevenLabs plugin with default settings, without a room."""

import asyncio
import logging

from livekit.agents.utils import http_context
from livekit.plugins import elevenlabs
from report import TEXT, URL, attempt, report, report_audio

logging.basicConfig(level=logging.WARNING)


async def streamed(speaker: elevenlabs.TTS, step: str) -> None:
    """Speak a text that is written word by word."""
    stream = speaker.stream()
    for word in TEXT.split():
        stream.push_text(f"{word} ")
    stream.end_input()
    frames = [event.frame async for event in stream]
    report_audio(step, b"".join(frame.data.tobytes() for frame in frames), "pcm")


async def main() -> None:
    speaker = elevenlabs.TTS(base_url=f"{URL}/v1", api_key="unused", encoding="pcm_24000")
    async with http_context.open():
        with attempt("synthesize"):
            report_audio("synthesize", (await speaker.synthesize(TEXT).collect()).data.tobytes(), "pcm")
        with attempt("stream"):
            await streamed(speaker, "stream")
        with attempt("second stream"):
            await streamed(speaker, "second stream")
        with attempt("list_voices"):
            report("list_voices", value=[voice.name for voice in await speaker.list_voices()])
        with attempt("mp3"):
            by_default = elevenlabs.TTS(base_url=f"{URL}/v1", api_key="unused")
            await by_default.synthesize(TEXT).collect()
            report("mp3", value=True)
            await by_default.aclose()
        await speaker.aclose()


asyncio.run(main())
