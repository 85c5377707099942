"""Output of client scripts: they print a line of JSON for each step, which the test that started them reads.

Scripts run in the client's own environment, so this module imports only the standard library.
"""

import json
import os
import sys
import traceback
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEXT = "It is twenty past nine and the garden door is open."
URL, RECORDING, FOLDER = sys.argv[1].rstrip("/"), Path(sys.argv[2]), Path(sys.argv[3])

# Defaults that every OpenAI client reads.
os.environ["OPENAI_BASE_URL"] = f"{URL}/v1"
os.environ["OPENAI_API_KEY"] = "unused"


def report(step: str, **result: object) -> None:
    """Print the result of a step, for example `text="…"` or `value=3`."""
    print(json.dumps({"step": step, **result}), flush=True)


def report_audio(step: str, data: bytes, suffix: str) -> None:
    """Save audio for the test to decode. The suffix `pcm` means 16-bit mono samples at 24 kHz."""
    path = FOLDER / f"{step.replace(' ', '_').replace('/', '_')}.{suffix}"
    path.write_bytes(data)
    report(step, audio=str(path))


def recorded_pcm() -> bytes:
    """Return the recording's 16-bit mono samples at 24 kHz, with a second of silence after the speech."""
    with wave.open(str(RECORDING)) as file:
        assert (file.getframerate(), file.getsampwidth(), file.getnchannels()) == (24_000, 2, 1)
        return file.readframes(file.getnframes()) + bytes(48_000)


@contextmanager
def attempt(step: str) -> Iterator[None]:
    """Report a step that raises as an error, and go on with the next one."""
    try:
        yield
    except Exception as error:
        traceback.print_exc()
        report(step, error=f"{type(error).__name__}: {error}")
