"""Pipecat: each OpenAI service, with default settings, in its own pipeline, and in one for Twilio's messages."""

import asyncio
import audioop
import base64
import json
from functools import partial

from pipecat.frames.frames import (
    InputAudioRawFrame,
    InterruptionFrame,
    StartFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSStoppedFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.serializers.twilio import TwilioFrameSerializer
from pipecat.services.openai.stt import OpenAIRealtimeSTTService, OpenAISTTService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat_pipeline import run, until
from report import TEXT, URL, attempt, recorded_pcm, report, report_audio


async def speak_otherwise(step, worker, frames) -> None:
    await worker.queue_frame(TTSSpeakFrame(TEXT))
    passed = await until(frames, TTSStoppedFrame)
    report_audio(step, b"".join(frame.audio for frame in passed if isinstance(frame, TTSAudioRawFrame)), "pcm")


async def speak(step, worker, frames) -> None:
    await speak_otherwise(step, worker, frames)
    await worker.queue_frame(TTSSpeakFrame(f"{TEXT} " * 10))
    await until(frames, TTSAudioRawFrame)
    await worker.queue_frame(InterruptionFrame())
    await until(frames, InterruptionFrame)
    report("interrupted", value=True)


async def listen(step, worker, frames) -> None:
    data = recorded_pcm()
    await worker.queue_frame(VADUserStartedSpeakingFrame())
    for start in range(0, len(data), 4800):
        await worker.queue_frame(InputAudioRawFrame(data[start : start + 4800], 24_000, 1))
        await asyncio.sleep(0.02)
    await worker.queue_frame(VADUserStoppedSpeakingFrame())
    report(step, text=(await until(frames, TranscriptionFrame))[-1].text)


async def serializer(rate: int) -> TwilioFrameSerializer:
    """Return Pipecat's serializer of Twilio's messages, for a pipeline that receives audio at `rate`."""
    made = TwilioFrameSerializer("MZ1", params=TwilioFrameSerializer.InputParams(auto_hang_up=False))
    await made.setup(StartFrame(audio_in_sample_rate=rate, audio_out_sample_rate=24_000))
    return made


async def speak_to_twilio(step, worker, frames) -> None:
    twilio, spoken = await serializer(24_000), b""
    await worker.queue_frame(TTSSpeakFrame(TEXT))
    for frame in await until(frames, TTSStoppedFrame):
        if isinstance(frame, TTSAudioRawFrame) and (message := await twilio.serialize(frame)):
            spoken += base64.b64decode(json.loads(message)["media"]["payload"])
    at_24_khz, _ = audioop.ratecv(audioop.ulaw2lin(spoken, 2), 2, 1, 8_000, 24_000, None)
    report_audio(step, at_24_khz, "pcm")


async def listen_to_twilio(step, worker, frames) -> None:
    twilio = await serializer(8_000)
    at_8_khz, _ = audioop.ratecv(recorded_pcm(), 2, 1, 24_000, 8_000, None)
    mulaw = audioop.lin2ulaw(at_8_khz, 2)
    await worker.queue_frame(VADUserStartedSpeakingFrame())
    for start in range(0, len(mulaw), 160):
        payload = base64.b64encode(mulaw[start : start + 160]).decode()
        message = {"event": "media", "streamSid": "MZ1", "media": {"track": "inbound", "payload": payload}}
        await worker.queue_frame(await twilio.deserialize(json.dumps(message)))
        await asyncio.sleep(0.004)
    await worker.queue_frame(VADUserStoppedSpeakingFrame())
    report(step, text=(await until(frames, TranscriptionFrame))[-1].text)


async def main() -> None:
    base = {"api_key": "unused", "base_url": f"{URL}/v1"}
    socket = {"api_key": "unused", "base_url": f"{URL.replace('http', 'ws', 1)}/v1/realtime"}
    patient = {"stop_frame_timeout_s": 120}  # 3 s by default, in which a busy machine may not speak
    otherwise = OpenAITTSService.Settings(speed=1.25, instructions="Speak calmly.")
    noise = OpenAIRealtimeSTTService.Settings(model="gpt-transcribe", noise_reduction="near_field")
    detecting = {"turn_detection": {"type": "server_vad"}, "settings": noise}
    services = {
        "OpenAITTSService": (lambda: OpenAITTSService(**base, **patient), speak),
        "OpenAITTSService at 1.25 with instructions": (
            lambda: OpenAITTSService(**base, **patient, settings=otherwise),
            speak_otherwise,
        ),
        "OpenAISTTService": (lambda: OpenAISTTService(**base), listen),
        "OpenAISTTService with probabilities": (lambda: OpenAISTTService(**base, include_prob_metrics=True), listen),
        "OpenAIRealtimeSTTService": (lambda: OpenAIRealtimeSTTService(**socket), listen),
        "OpenAIRealtimeSTTService with server VAD": (lambda: OpenAIRealtimeSTTService(**socket, **detecting), listen),
    }
    for step, (service, drive) in services.items():
        with attempt(step):
            await run(service(), partial(drive, step))
    with attempt("OpenAITTSService to Twilio"):
        await run(OpenAITTSService(**base, **patient), partial(speak_to_twilio, "OpenAITTSService to Twilio"))
    with attempt("OpenAISTTService from Twilio"):
        await run(OpenAISTTService(**base), partial(listen_to_twilio, "OpenAISTTService from Twilio"), rate=8_000)


asyncio.run(main())
