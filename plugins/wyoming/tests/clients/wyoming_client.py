"""Drive the gateway with the client of the package `wyoming`, over one connection.

Usage: wyoming_client.py URL RECORDING FOLDER
"""

import asyncio
from urllib.parse import urlsplit

from report import TEXT, URL, attempt, recorded_pcm, report, report_audio
from wyoming.asr import Transcribe, Transcript, TranscriptStop
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

PLACE = urlsplit(URL)


async def until(client: AsyncTcpClient, *kinds: type) -> list[Event]:
    """Return the events up to one of these kinds."""
    events = list[Event]()
    while not events or not any(kind.is_type(events[-1].type) for kind in kinds):
        event = await client.read_event()
        if event is None:
            raise RuntimeError("the gateway has closed the connection")
        events.append(event)
    return events


def speech(events: list[Event]) -> bytes:
    """Return the samples in events."""
    return b"".join(AudioChunk.from_event(event).audio for event in events if AudioChunk.is_type(event.type))


async def main() -> None:
    async with AsyncTcpClient(PLACE.hostname, PLACE.port) as client:
        await client.write_event(Describe().event())
        info = Info.from_event((await until(client, Info))[-1])
        report("voices", value=[voice.name for voice in info.tts[0].voices])
        report("streams", value=info.tts[0].supports_synthesize_streaming and info.asr[0].supports_transcript_streaming)
        voice = SynthesizeVoice(name=info.tts[0].voices[-1].name)
        with attempt("speech"):
            await client.write_event(Synthesize(text=TEXT, voice=voice).event())
            report_audio("speech", speech(await until(client, AudioStop)), "pcm")
        with attempt("speech of a written text"):
            await client.write_event(SynthesizeStart(voice=voice).event())
            await client.write_event(SynthesizeChunk(text=f"{TEXT} And ").event())
            events = await until(client, AudioChunk)  # before the text is complete
            await client.write_event(SynthesizeChunk(text="it is ten.").event())
            await client.write_event(SynthesizeStop().event())
            report_audio("speech of a written text", speech(events + await until(client, SynthesizeStopped)), "pcm")
        with attempt("transcript"):
            await client.write_event(Transcribe(language="en").event())
            form = {"rate": 24_000, "width": 2, "channels": 1}
            await client.write_event(AudioStart(**form).event())
            data = recorded_pcm()
            for begin in range(0, len(data), 4800):
                await client.write_event(AudioChunk(**form, audio=data[begin : begin + 4800]).event())
            await client.write_event(AudioStop().event())
            events = await until(client, TranscriptStop)
            report("transcript", text=next(e.data["text"] for e in events if Transcript.is_type(e.type)))
        with attempt("error"):
            await client.write_event(Synthesize(text=TEXT, voice=SynthesizeVoice(name="nobody")).event())
            report("error", value=Error.from_event((await until(client, Error))[-1]).text.startswith("voice: expected"))
            await client.write_event(Ping(text="a").event())
            report("ping", value=Pong.from_event((await until(client, Pong))[-1]).text == "a")


asyncio.run(main())
