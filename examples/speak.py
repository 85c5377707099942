"""Speak a text, print its words as they arrive, and write a wav file.

python examples/speak.py "Good morning." [--server HOST:PORT] [--out FILE]

Requires a running server (`stretto serve`).
"""

import argparse
import asyncio
import wave

from stretto_client import SpeechClient


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("text", nargs="?", default="It is twenty past nine and the garden door is open.")
    parser.add_argument("--server", default="localhost:8001", help="gRPC address")
    parser.add_argument("--out", default="speech.wav")
    arguments = parser.parse_args()

    async with SpeechClient(arguments.server) as client:
        with wave.open(arguments.out, "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
            async for event in client.speak(arguments.text, encoding="pcm_s16le", sample_rate=16_000, seed=7):
                for word in event.words:
                    print(f"{word.start_s:6.2f} s  {word.word}")
                if event.pcm is not None:
                    file.writeframes(event.pcm.tobytes())
                if event.report is not None:
                    print(f"{arguments.out}: {event.start_s + event.duration_s:.2f} s, seed {event.report['seed']}")


if __name__ == "__main__":
    asyncio.run(main())
