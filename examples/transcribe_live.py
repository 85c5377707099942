"""Transcribe a WAV file while it plays, and print words as soon as the model generates them.

python examples/transcribe_live.py recording.wav

The served model must accept live audio, as Kyutai STT does.
"""

import argparse
import asyncio
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stretto_client import SpeechClient

PIECE_S = 0.08


async def played(file: wave.Wave_read) -> AsyncIterator[NDArray[np.int16]]:
    """Yield the samples of a 16-bit mono file in real time."""
    while pcm := file.readframes(round(PIECE_S * file.getframerate())):
        yield np.frombuffer(pcm, np.int16)
        await asyncio.sleep(PIECE_S)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path, help="16-bit mono WAV file")
    parser.add_argument("--server", default="localhost:8001", help="gRPC address of the server")
    arguments = parser.parse_args()

    with wave.open(str(arguments.file), "rb") as file:
        async with SpeechClient(arguments.server) as client:
            async for event in client.transcribe_live(played(file), file.getframerate()):
                print(event.text, end="", flush=True)
    print()


if __name__ == "__main__":
    asyncio.run(main())
