"""Run Moshi's own client against a gateway, with a simulated sound card.

The package is imported without its `__init__`, which needs torch. One block of 80 ms is played and recorded at a time.

Usage: kyutai_moshi.py URL RECORDING FOLDER
"""

import argparse
import asyncio
import json
import sys
import threading
import time
import wave
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

URL, RECORDING = sys.argv[1:3]
BLOCK = 1920
with wave.open(RECORDING) as file:
    pcm = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
blocks = np.split(pcm[: len(pcm) // BLOCK * BLOCK], len(pcm) // BLOCK)
played, is_over = list[np.ndarray](), threading.Event()


class Card:
    """A microphone with the recording, and a loudspeaker, as `sounddevice` has them."""

    def __init__(self, callback: Any, **settings: Any):
        self._callback = callback
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        is_over.set()


class Microphone(Card):
    """Stream that records the blocks of the recording, and ends the conversation once it has been answered."""

    def _run(self) -> None:
        for block in blocks:
            self._callback(block[:, None], BLOCK, None, None)
            time.sleep(0.02)
        while len(played) < len(blocks) - 4:  # a few blocks are in the encoders
            time.sleep(0.02)
        is_over.set()


class Loudspeaker(Card):
    """Stream that plays all blocks at once."""

    def _run(self) -> None:
        while not is_over.is_set():
            queue = self._callback.__self__._output_queue
            if queue.empty():
                time.sleep(0.01)
                continue
            block = np.zeros((BLOCK, 1), np.float32)
            self._callback(block, BLOCK, None, None)
            played.append(block[:, 0])


sound = ModuleType("sounddevice")
sound.InputStream, sound.OutputStream = Microphone, Loudspeaker  # type: ignore[attr-defined]
sys.modules["sounddevice"] = sound
spec = find_spec("moshi")
assert spec is not None
package = ModuleType("moshi")
package.__path__ = list(spec.submodule_search_locations or ())
sys.modules["moshi"] = package
from moshi import client, client_utils  # noqa: E402


class Printer(client_utils.RawPrinter):  # type: ignore[misc]
    """Printer that keeps everything."""

    def __init__(self) -> None:
        super().__init__(sys.stderr, sys.stderr)
        self.tokens, self.lines = list[str](), list[tuple[str, str]]()

    def print_token(self, token: str) -> None:
        self.tokens.append(token)

    def log(self, level: str, msg: str) -> None:
        self.lines.append((level, msg))


async def main() -> None:
    """Converse until the recording has been answered."""
    printer = Printer()
    settings = argparse.Namespace(url=URL, https=False, host="", port=0)
    talking = asyncio.ensure_future(client.run(printer, settings))
    while not is_over.is_set() and not talking.done():
        await asyncio.sleep(0.02)
    talking.cancel()
    await asyncio.wait([talking])
    sound = np.concatenate([np.zeros(0, np.float32), *played])
    result = {"num_samples": len(sound), "peak": float(np.abs(sound).max(initial=0)), "text": printer.tokens}
    print(json.dumps({"step": "conversation", "log": printer.lines} | result))


asyncio.run(main())
