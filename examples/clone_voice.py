"""Speak in the voice of a recording.

python examples/clone_voice.py me.wav "Good morning." --words "The words of the recording."

The server must run a family that clones voices, such as Pocket TTS or Qwen3-TTS Base (docs/families.md).
"""

import argparse
import asyncio
import sys
import wave

from stretto_client import RecordedVoice, SpeechClient


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recording", help="wav, flac, ogg, mp3, aiff, caf, webm, m4a, mp4 or aac")
    parser.add_argument("text")
    parser.add_argument("--words", default="", help="transcript of the recording, required by Higgs Audio v2")
    parser.add_argument("--server", default="localhost:8001", help="gRPC address")
    parser.add_argument("--out", default="cloned.wav")
    arguments = parser.parse_args()

    async with SpeechClient(arguments.server) as client:
        profile = await client.profile()
        if not any("audio" in task.system for task in profile.tasks if task.name == "tts"):
            sys.exit(f"{profile.family} does not clone voices")
        voice = RecordedVoice(arguments.recording, arguments.words)
        rate = profile.sample_rate
        with wave.open(arguments.out, "wb") as file:
            file.setparams((1, 2, rate, 0, "NONE", ""))
            async for event in client.speak(arguments.text, voice=voice, encoding="pcm_s16le"):
                if event.pcm is not None:
                    file.writeframes(event.pcm.tobytes())
    print(arguments.out)


if __name__ == "__main__":
    asyncio.run(main())
