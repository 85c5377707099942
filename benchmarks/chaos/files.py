"""Large audio files, of which some cannot be decoded."""

import io
from collections.abc import Callable

import numpy as np
import soundfile

NUM_BYTES = 19_000_000


def wave(seconds: float, rate: int, channels: int, subtype: str) -> bytes:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (int(seconds * rate), channels)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def corrupt_flac() -> bytes:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (NUM_BYTES // 4, 1)).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(file, samples, 384_000, format="FLAC", subtype="PCM_24")
    data = file.getvalue()
    return data[: len(data) // 2] + bytes(NUM_BYTES - len(data) // 2)


FILES: dict[str, Callable[[], bytes]] = {
    "prepared": lambda: wave(0.77, 384_000, 8, "DOUBLE"),  # much to decode, and little for the models
    "long": lambda: wave(215.0, 44_100, 1, "PCM_16"),
    "format": lambda: np.random.default_rng(0).bytes(NUM_BYTES),
    "corrupt": corrupt_flac,
    "unsound": lambda: bytes(NUM_BYTES),
}
REFUSED = FILES.keys() - {"prepared", "corrupt"}
