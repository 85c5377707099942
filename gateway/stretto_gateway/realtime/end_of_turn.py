"""End-of-turn model, which estimates from the sound of a turn whether the speaker has finished.

The model is a file of Smart Turn v3 (https://github.com/pipecat-ai/smart-turn, BSD-2-Clause) or one with the same input
and output. It reads the features of Whisper's encoder for the last 8 s of a turn.
"""

import asyncio
import logging
import resource
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import soxr
from numpy.typing import NDArray

from stretto_client.fair_threads import CALLER, Turns
from stretto_contract.limits import FairLimit

LOG = logging.getLogger("stretto_gateway")
RATE = 16_000
SECONDS = 8  # duration of the end of a turn that the model reads
NUM_SAMPLES = SECONDS * RATE
FOURIER = 400
HOP = 160
NUM_MELS = 80
NUM_FRAMES = 800
INPUT = ["input_features", "tensor(float)", [NUM_MELS, NUM_FRAMES]]
MAX_FILE_BYTES = 128 << 20  # the largest published file has 32 MB
THREADS = 2  # a decision takes about 50 ms of one core
MAX_WAITING = 32  # decisions that are running or waiting for a thread, each with 0.4 MB of samples
WAIT_S = 1.0  # maximum time for a decision; its session waits for it, and no other one
FULL_SCALE = 32768.0  # as in `encoding`, which loads more than the process that checks a file needs
# Limits on the process that checks the file, because a graph may ask for any amount of memory and time.
CHECK_BYTES = 4 << 30
CHECK_CPU_S = 60
NOT_A_MODEL = 2

Run = Callable[[NDArray[np.float32]], float]


@cache
def mel_filters() -> NDArray[np.float64]:
    """Return Whisper's mel filters (Slaney's scale and norm), float64 [FOURIER // 2 + 1, NUM_MELS]."""
    # Slaney's scale is linear up to 1 kHz (15 mel), and logarithmic above it.
    mel = np.linspace(0, 15 + 27 * np.log(8) / np.log(6.4), NUM_MELS + 2)
    hertz = np.where(mel < 15, mel * 200 / 3, 1000 * 6.4 ** ((mel - 15) / 27))
    bins = np.linspace(0, RATE / 2, FOURIER // 2 + 1)
    corners = [hertz[m : m + 3] for m in range(NUM_MELS)]
    return np.stack([np.interp(bins, corner, (0, 2 / (corner[2] - corner[0]), 0)) for corner in corners], axis=1)


def log_mel(pcm: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the features of Whisper's encoder, float32 [NUM_MELS, NUM_FRAMES], for audio [NUM_SAMPLES] at 16 kHz."""
    normal = (pcm - pcm.mean()) / np.sqrt(pcm.var() + 1e-7)
    padded = np.pad(normal, FOURIER // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, FOURIER)[:-1:HOP]  # without the last, as in Whisper
    power = np.abs(np.fft.rfft(frames * np.hanning(FOURIER + 1)[:-1])) ** 2
    decades = np.log10(np.maximum(power @ mel_filters(), 1e-10)).T
    features: NDArray[np.float32] = ((np.maximum(decades, decades.max() - 8) + 4) / 4).astype(np.float32)
    return features


def last_samples(pcm: bytes, rate: int) -> NDArray[np.float32]:
    """Return the end of a turn, pcm16 at `rate` Hz, as the model reads it: float32 [NUM_SAMPLES] at 16 kHz.

    Silence precedes a shorter turn.
    """
    turn = np.frombuffer(pcm, "<i2")[-rate * NUM_SAMPLES // RATE :].astype(np.float32) / FULL_SCALE
    heard = soxr.resample(turn, rate, RATE)[-NUM_SAMPLES:]
    return np.pad(heard, (NUM_SAMPLES - len(heard), 0))


def load(model: bytes) -> Run:
    """Return the function from features to the probability of `model`; raise ValueError if it is no such ONNX file."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, too
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception class for each of its error codes
        raise ValueError(f"onnxruntime cannot read it: {first_line(error)}") from None
    inputs = [[tensor.name, tensor.type, list(tensor.shape[1:])] for tensor in session.get_inputs()]
    if inputs != [INPUT]:
        raise ValueError(f"expected the only input {shown(INPUT)}, got {', '.join(map(shown, inputs)) or 'none'}")

    def run(features: NDArray[np.float32]) -> float:
        first = np.asarray(session.run(None, {INPUT[0]: features[None]})[0])
        if first.size != 1 or not 0 <= float(first.item()) <= 1:
            raise ValueError(f"expected a probability as its first output, got {first.dtype} {list(first.shape)}")
        return float(first.item())

    try:
        run(log_mel(np.zeros(NUM_SAMPLES, np.float32)))
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"onnxruntime cannot run it: {first_line(error)}") from None
    return run


def shown(tensor: list[Any]) -> str:
    """Describe an input by its name, type and shape after the batch."""
    name, element_type, shape = tensor
    return f"{str(name)[:40]!r} ({element_type}, [batch, {', '.join(map(str, shape))}])"[:120]


def first_line(error: Exception) -> str:
    """Return the beginning of an error message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def read_model(path: Path) -> bytes:
    """Return the content of an end-of-turn model, which a child process has loaded and run once.

    ValueError is raised if the file is not such a model.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= MAX_FILE_BYTES:
        what = f"{status.st_size} bytes" if stat.S_ISREG(status.st_mode) else "something else"
        raise ValueError(f"--turn-model: expected a file of 1 to {MAX_FILE_BYTES} bytes, got {what}: {path}")
    model = path.read_bytes()
    command = [sys.executable, "-P", "-m", __name__]
    done = subprocess.run(command, input=model, capture_output=True, check=False)
    if done.returncode:
        ended = f"the process that checks it ended with code {done.returncode}"
        why = done.stderr.decode(errors="replace").strip() if done.returncode == NOT_A_MODEL else ended
        raise ValueError(f"--turn-model: expected an end-of-turn model such as Smart Turn v3, got {path}: {why}")
    return model


def main() -> int:
    """Load the model from standard input, and run it once, with little memory and time; return an exit code."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number, limit in ((resource.RLIMIT_AS, CHECK_BYTES), (resource.RLIMIT_CPU, CHECK_CPU_S)):
        with suppress(ValueError):  # a lower limit holds already
            resource.setrlimit(number, (limit, limit))
    try:
        load(sys.stdin.buffer.read())
    except (MemoryError, ValueError) as error:
        print(error or "it needs too much memory", file=sys.stderr)
        return NOT_A_MODEL
    return 0


class EndOfTurn:
    """End-of-turn model for all sessions, which runs in THREADS threads, outside the event loop.

    Args:
        model: Content of a file that `read_model` has checked.
        note: Callback that receives the outcome of each decision, and its duration in seconds.
    """

    def __init__(self, model: bytes, note: Callable[[str, float], None]):
        self._run = load(model)
        self._note = note
        self._turns = Turns(THREADS, "end-of-turn")
        self._waiting = FairLimit(MAX_WAITING)

    async def is_complete(self, pcm: bytes, rate: int, threshold: float) -> bool | None:
        """Return True if the turn is complete, False if not, and None if the model has no answer.

        Args:
            pcm: The turn up to its last pause, pcm16 at `rate` Hz.
            threshold: Probability from which a turn is complete.
        """
        begun_s = time.monotonic()
        outcome = "failed"
        is_complete = None
        with self._waiting.reserving(CALLER.get()) as is_left:
            if not is_left:
                outcome = "busy"
            else:
                try:
                    async with asyncio.timeout(WAIT_S):
                        is_complete = await self._turns.run(self._probability, pcm, rate) >= threshold
                    outcome = "complete" if is_complete else "incomplete"
                except TimeoutError:
                    outcome = "late"
                except Exception:  # onnxruntime raises many types of errors; the session continues without the model
                    LOG.exception("the end-of-turn model failed")
        self._note(outcome, time.monotonic() - begun_s)
        return is_complete

    def _probability(self, pcm: bytes, rate: int) -> float:
        return self._run(log_mel(last_samples(pcm, rate)))

    def close(self) -> None:
        """Stop the threads; decisions that have not begun are dropped."""
        self._turns.close()


if __name__ == "__main__":
    sys.exit(main())
