"""LiveKit Agents: its OpenAI plugin with default settings, without a room."""

import asyncio
import logging

from livekit import rtc
from livekit.agents import inference, stt, tokenize, tts
from livekit.agents.utils import http_context
from livekit.plugins import openai
from report import TEXT, attempt, recorded_pcm, report, report_audio

logging.basicConfig(level=logging.WARNING)


def recorded_frames() -> list[rtc.AudioFrame]:
    data = recorded_pcm()
    return [
        rtc.AudioFrame(data[start : start + 4800], 24_000, 1, len(data[start : start + 4800]) // 2)
        for start in range(0, len(data), 4800)
    ]


async def speech() -> None:
    speaker = openai.TTS()
    speaker.prewarm()
    with attempt("TTS"):
        report_audio("TTS", (await speaker.synthesize(TEXT).collect()).data.tobytes(), "pcm")
    with attempt("TTS at 1.25 with instructions"):
        known = {"model": "tts-1", "voice": "alloy", "response_format": "wav"}
        calm = openai.TTS(**known, speed=1.25, instructions="Speak calmly.")
        report_audio("TTS at 1.25 with instructions", (await calm.synthesize(TEXT).collect()).data.tobytes(), "pcm")
    with attempt("TTS by StreamAdapter"):
        stream = tts.StreamAdapter(tts=speaker, sentence_tokenizer=tokenize.basic.SentenceTokenizer()).stream()
        for word in TEXT.split():
            stream.push_text(f"{word} ")
        stream.end_input()
        frames = [event.frame async for event in stream]
        report_audio("TTS by StreamAdapter", b"".join(frame.data.tobytes() for frame in frames), "pcm")
    with attempt("cancelled after the first frame"):
        cut = speaker.synthesize(f"{TEXT} " * 10)
        await cut.__anext__()
        await cut.aclose()
        report("cancelled after the first frame", value=True)


async def transcriptions() -> None:
    for model in (None, "gpt-transcribe", "whisper-1"):
        with attempt(f"STT {model or 'by default'}"):
            listener = openai.STT(**({"model": model} if model else {}))
            event = await listener.recognize(recorded_frames())
            report(f"STT {model or 'by default'}", text=event.alternatives[0].text)


async def stream_to(listener: stt.STT, step: str) -> None:
    stream = listener.stream()
    for frame in recorded_frames():
        stream.push_frame(frame)
        await asyncio.sleep(0.02)
    for _ in range(10):  # a microphone continues after the words
        stream.push_frame(rtc.AudioFrame(bytes(4800), 24_000, 1, 2400))
        await asyncio.sleep(0.02)
    if not isinstance(listener, openai.STT):
        stream.end_input()
    async for event in stream:
        if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
            report(step, text=event.alternatives[0].text)
            break
    await stream.aclose()


async def main() -> None:
    async with http_context.open():
        await speech()
        await transcriptions()
        listeners = {
            "STT by StreamAdapter": lambda: stt.StreamAdapter(stt=openai.STT(), vad=inference.VAD()),
            "realtime STT": lambda: openai.STT(use_realtime=True),
            "realtime STT gpt-live-transcribe": lambda: openai.STT(
                model="gpt-live-transcribe", noise_reduction_type="near_field"
            ),
        }
        for step, listener in listeners.items():
            with attempt(step):
                await asyncio.wait_for(stream_to(listener(), step), 300)


asyncio.run(main())
