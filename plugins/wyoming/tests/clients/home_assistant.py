"""Drive the gateway with the component `wyoming` of Home Assistant: its entities for speech and transcripts.

Usage: home_assistant.py URL RECORDING FOLDER
"""

import asyncio
import audioop
from collections.abc import AsyncIterator, Coroutine
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from homeassistant.components import stt, tts
from homeassistant.components.wyoming.data import WyomingService
from homeassistant.components.wyoming.stt import WyomingSttProvider
from homeassistant.components.wyoming.tts import WyomingTtsProvider
from report import TEXT, URL, attempt, recorded_pcm, report, report_audio

PLACE = urlsplit(URL)
RATE = 16_000


def background(_: Any, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    """Run work as Home Assistant does for a configured service."""
    return asyncio.create_task(work, name=name)


async def speak(entry: Any, service: WyomingService) -> None:
    speaker = WyomingTtsProvider(entry, service)
    speaker.hass = None
    voices = [voice.voice_id for voice in speaker.async_get_supported_voices("en")]
    report("voices", value=voices)
    options = {tts.ATTR_VOICE: voices[0]}
    with attempt("speech"):
        suffix, data = await speaker.async_get_tts_audio(TEXT, "en", options)
        report_audio("speech", data, suffix)
    with attempt("speech of a written text"):
        has_sound = asyncio.Event()

        async def words() -> AsyncIterator[str]:
            yield f"{TEXT} And "
            await has_sound.wait()
            yield "it is ten."

        report("streams", value=speaker.async_supports_streaming_input())
        request = tts.TTSAudioRequest("en", options, words())
        parts = list[bytes]()
        async for part in (await speaker.async_stream_tts_audio(request)).data_gen:
            parts.append(part)
            if len(parts) > 1:  # the first part is the head of the file
                has_sound.set()
        report_audio("speech of a written text", b"".join(parts[1:]), "pcm")


async def hear(entry: Any, service: WyomingService) -> None:
    listener = WyomingSttProvider(entry, service)
    report("languages", value="en" in listener.supported_languages)
    samples, _ = audioop.ratecv(recorded_pcm(), 2, 1, 24_000, RATE, None)

    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(samples), 2048):
            yield samples[begin : begin + 2048]

    form = (stt.AudioFormats.WAV, stt.AudioCodecs.PCM, stt.AudioBitRates.BITRATE_16)
    metadata = stt.SpeechMetadata("en", *form, stt.AudioSampleRates(RATE), stt.AudioChannels.CHANNEL_MONO)
    report("transcript", text=(await listener.async_process_audio_stream(metadata, pieces())).text)


async def main() -> None:
    service = await WyomingService.create(PLACE.hostname, PLACE.port)
    report("services", value=service is not None and [*map(str, service.platforms)])
    entry = SimpleNamespace(entry_id="entry", async_create_background_task=background)
    await speak(entry, service)
    with attempt("transcript"):
        await hear(entry, service)


asyncio.run(main())
