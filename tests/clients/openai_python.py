"""OpenAI's Python package: the calls that its documentation shows."""

import asyncio
import base64
import json

import openai
from report import RECORDING, TEXT, attempt, recorded_pcm, report, report_audio

client = openai.OpenAI(max_retries=0, timeout=300)
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")


def speech() -> None:
    for response_format in FORMATS:
        with (
            attempt(f"speech {response_format}"),
            client.audio.speech.with_streaming_response.create(
                model="gpt-4o-mini-tts",
                voice="coral",
                input=TEXT,
                instructions="Speak in a cheerful and positive tone.",
                response_format=response_format,
            ) as response,
        ):
            report_audio(f"speech {response_format}", response.read(), response_format)
    with attempt("speech by the default format"):
        whole = client.audio.speech.create(model="gpt-4o-mini-tts-2025-12-15", voice="marin", input=TEXT)
        report_audio("speech by the default format", whole.content, "mp3")
    with attempt("speech at 1.5"):
        fast = client.audio.speech.create(model="tts-1", voice="alloy", input=TEXT, speed=1.5, response_format="wav")
        report_audio("speech at 1.5", fast.content, "wav")
    with attempt("speech by a voice's id"):
        named = client.audio.speech.create(model="tts-1-hd", voice={"id": "alloy"}, input=TEXT, response_format="pcm")
        report_audio("speech by a voice's id", named.content, "pcm")


def speech_streams() -> None:
    create = client.audio.speech.with_streaming_response.create
    known = {"model": "gpt-4o-mini-tts", "voice": "alloy", "response_format": "pcm"}
    with attempt("speech by events"), create(**known, input=TEXT, stream_format="sse") as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
        parts = [base64.b64decode(event["audio"]) for event in events if event["type"] == "speech.audio.delta"]
        report_audio("speech by events", b"".join(parts), "pcm")
        report("last speech event", value=events[-1]["type"] == "speech.audio.done" and "usage" in events[-1])
    with attempt("aborted after the first part"), create(**known, input=f"{TEXT} " * 20) as response:
        report("aborted after the first part", value=len(next(response.iter_bytes(1024))) == 1024)
    with attempt("models"):
        report("models", value=len(client.models.list().data) > 0)


def transcriptions() -> None:
    for model in ("gpt-transcribe", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "whisper-1"):
        with attempt(f"transcription {model}"), RECORDING.open("rb") as file:
            report(f"transcription {model}", text=client.audio.transcriptions.create(model=model, file=file).text)
    known = {"model": "whisper-1", "file": RECORDING}
    for response_format in ("text", "srt", "vtt"):
        with attempt(f"transcription {response_format}"):
            written = client.audio.transcriptions.create(
                **known, response_format=response_format, language="en", prompt="A garden."
            )
            report(f"transcription {response_format}", text=str(written))
    with attempt("transcription verbose_json"):
        verbose = client.audio.transcriptions.create(
            **known, response_format="verbose_json", timestamp_granularities=["segment"], temperature=0
        )
        report("transcription verbose_json", text=verbose.text)
        report("segments", value=bool(verbose.segments) and verbose.duration > 1)
    with attempt("transcription by events"):
        stream = client.audio.transcriptions.create(
            model="gpt-transcribe",
            file=RECORDING,
            stream=True,
            chunking_strategy="auto",
            include=["logprobs"],
            keywords=["garden"],
        )
        events = list(stream)
        report("transcription by events", text=events[-1].text)
        report("parts of it", text="".join(event.delta for event in events if event.type == "transcript.text.delta"))


async def realtime_transcription(model: str) -> str:
    realtime = openai.AsyncOpenAI(max_retries=0).realtime
    async with realtime.connect(extra_query={"intent": "transcription"}) as connection:
        detection = None if model == "gpt-live-transcribe" else {"type": "server_vad"}
        heard = {
            "format": {"type": "audio/pcm", "rate": 24_000},
            "transcription": {"model": model, "language": "en", "prompt": ""},
            "turn_detection": detection,
            "noise_reduction": {"type": "near_field"},
        }
        session = {"type": "transcription", "audio": {"input": heard}}
        session["include"] = ["item.input_audio_transcription.logprobs"]
        await connection.session.update(session=session)
        data = recorded_pcm()
        for start in range(0, len(data), 4800):
            await connection.input_audio_buffer.append(audio=base64.b64encode(data[start : start + 4800]).decode())
        if detection is None:
            await connection.input_audio_buffer.commit()
        async for event in connection:
            if event.type == "error":
                raise RuntimeError(event.error.message)
            if event.type == "conversation.item.input_audio_transcription.completed":
                return event.transcript
    raise RuntimeError("the connection ended before a transcript")


speech()
speech_streams()
transcriptions()
for realtime_model in ("gpt-4o-transcribe", "gpt-live-transcribe"):
    with attempt(f"realtime transcription {realtime_model}"):
        text = asyncio.run(asyncio.wait_for(realtime_transcription(realtime_model), 300))
        report(f"realtime transcription {realtime_model}", text=text)
