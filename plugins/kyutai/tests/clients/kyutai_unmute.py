"""Run Unmute's own classes for speech to text and text to speech against a gateway.

Usage: kyutai_unmute.py URL RECORDING FOLDER, with Unmute's source in PYTHONPATH. FOLDER/task is `asr` or `tts`.
"""

import asyncio
import json
import sys
import wave
from pathlib import Path
from types import ModuleType

import numpy as np

URL, RECORDING, FOLDER = sys.argv[1:4]
TEXT = "It is twenty past nine and the garden door is open."
# Modules that these classes import and do not use here.
fastrtc, prompt = ModuleType("fastrtc"), ModuleType("unmute.llm.system_prompt")
fastrtc.audio_to_float32 = prompt.Instructions = dict  # type: ignore[attr-defined]
sys.modules |= {"fastrtc": fastrtc, "unmute.llm.system_prompt": prompt}
from unmute.stt.speech_to_text import SpeechToText, STTMarkerMessage, STTWordMessage  # noqa: E402
from unmute.tts.text_to_speech import TextToSpeech, TTSAudioMessage, TTSClientEosMessage, TTSTextMessage  # noqa: E402


async def transcribe() -> None:
    """Send the recording, silence and a marker, and print the words before the marker."""
    with wave.open(RECORDING) as file:
        pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
    stt = SpeechToText(URL)
    await stt.start_up()
    words, pauses = [], []

    async def read() -> None:
        async for message in stt:
            pauses.append(stt.pause_prediction.value)
            if isinstance(message, STTWordMessage):
                words.append([message.text, message.start_time])
            if isinstance(message, STTMarkerMessage):
                assert message.id == 7
                return

    reading = asyncio.create_task(read())
    for at in range(0, len(pcm), 1920):
        await stt.send_audio(pcm[at : at + 1920])
    await stt.send_audio(np.zeros(24_000, np.float32))
    await stt.send_marker(7)
    await stt.send_audio(np.zeros(24_000, np.float32))
    await asyncio.wait_for(reading, 300)
    await stt.websocket.close()
    print(json.dumps({"step": "asr", "words": words, "pauses": [min(pauses), max(pauses)]}))


async def speak() -> None:
    """Send a text word by word, and print the words and the length of the audio."""
    tts = TextToSpeech(URL, voice="unmute-prod-website/default_voice.wav")
    await tts.start_up()
    words, samples = [], []

    async def read() -> None:
        async for message in tts:
            if isinstance(message, TTSTextMessage):
                words.append([message.text, message.start_s, message.stop_s])
            if isinstance(message, TTSAudioMessage):
                samples.extend(message.pcm)

    reading = asyncio.create_task(read())
    for word in TEXT.split():
        await tts.send(f" {word}")
    await tts.send(TTSClientEosMessage())
    await asyncio.wait_for(reading, 300)
    with wave.open(f"{FOLDER}/unmute.wav", "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(24_000)
        file.writeframes((np.array(samples) * 32767).astype("<i2").tobytes())
    print(json.dumps({"step": "tts", "words": words, "num_samples": len(samples)}))


asyncio.run(transcribe() if Path(FOLDER, "task").read_text() == "asr" else speak())
