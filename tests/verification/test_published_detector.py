"""The published detector and its weights (resemble-perth): our code gives its scores, and it finds our mark."""

import sys
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import torch

from stretto.marking.perth import GAINS_DB, MARKER
from stretto.preprocessing.audio import Recording, read_recording
from stretto.verification.command import PACKAGE, RATE, open_detector
from stretto.verification.detector import BANDS, HOP, RANGE_DB, WEIGHTS, WIDTH, spectrum
from stretto_gateway.encoding import make_encoder

FOUND = find_spec(PACKAGE)
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(FOUND is None, reason="resemble-perth is not installed (scripts/nightly.sh installs it)"),
]
SAMPLES = sorted((Path(__file__).parents[1] / "data/speech").glob("*.ogg"))


def published(name: str) -> Any:
    """Return a network of the package with its weights, without the package's own imports."""
    assert FOUND is not None
    assert FOUND.submodule_search_locations
    folder, parents = Path(FOUND.submodule_search_locations[0]), ("perth", "perth_net", "perth_net_implicit")
    for number in range(1, len(parents) + 1):
        module = ModuleType(".".join(parents[:number]))
        module.__path__ = [str(folder.joinpath(*parents[1:number]))]
        sys.modules[module.__name__] = module
    try:
        networks = __import__(f"{'.'.join(parents)}.model.{name.lower()}", fromlist=[name])
        network = getattr(networks, name)(WIDTH, BANDS)
    finally:
        for each in [each for each in sys.modules if each.split(".")[0] == "perth"]:
            del sys.modules[each]
    weights = torch.load(folder / WEIGHTS, "cpu", weights_only=True)["model"]
    prefix = f"{name.lower()}."
    network.load_state_dict({key.removeprefix(prefix): each for key, each in weights.items() if key.startswith(prefix)})
    return network.eval()


def sample(path: Path) -> tuple[np.ndarray, int]:
    pcm, rate = soundfile.read(path, dtype="float32")
    return pcm, rate


def marked(pcm: np.ndarray, rate: int) -> np.ndarray:
    return np.clip(MARKER.stream(rate, rate // 50).push(pcm, True), -1, 1)


def at_rate(pcm: np.ndarray, rate: int) -> np.ndarray:
    return soxr.resample(pcm, rate, RATE).astype(np.float32)


@torch.inference_mode()
def test_scores_are_those_of_the_published_network() -> None:
    detector, network = open_detector(), published("Decoder")
    for path in SAMPLES:
        for pcm in (sample(path)[0], marked(*sample(path))):
            wide = at_rate(pcm, sample(path)[1])
            expected = float(network(spectrum(torch.from_numpy(wide))[None]).clamp(0, 1))
            assert detector.score(wide) == pytest.approx(expected, abs=1e-4)


@torch.inference_mode()
def test_gains_are_those_of_the_published_network() -> None:
    noise = np.random.default_rng(0).standard_normal(8 * RATE)
    pink = np.fft.irfft(np.fft.rfft(noise) / np.maximum(np.fft.rfftfreq(len(noise), 1 / RATE), 100))
    rhythm = 0.3 + 0.7 * np.abs(np.sin(4 * np.pi * np.arange(len(noise)) / RATE))
    levels = spectrum(torch.from_numpy((0.1 * pink / pink.std() * rhythm).astype(np.float32)))[None]
    change = published("Encoder")(levels)[0] - levels
    gains_db = change[0, :BANDS, 20:-20].mean(1).numpy() * RANGE_DB
    assert np.abs(gains_db - GAINS_DB).max() < 0.15
    assert levels.shape[2] == 1 + len(noise) // HOP


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_mark_is_found_in_marked_speech_and_after_codecs(path: Path) -> None:
    detector, (pcm, rate) = open_detector(), sample(path)
    clear = detector.score(at_rate(marked(pcm, rate), rate))
    assert clear is not None
    assert clear > 0.9
    plain = detector.score(at_rate(pcm, rate))
    assert plain is not None
    assert plain < 0.6
    wide = (soxr.resample(marked(pcm, rate), rate, 24_000) * 32_767).clip(-32_768, 32_767).astype(np.int16)
    for name in ("mp3", "opus", "aac"):
        encoder = make_encoder(name, 24_000)
        file = encoder.encode(wide) + encoder.close()
        score = detector.score(read_recording(Recording("file", file), 60, RATE))
        assert score is not None
        assert score > 0.7, name
    file = BytesIO()
    soundfile.write(file, soxr.resample(marked(pcm, rate), rate, 8_000), 8_000, "ULAW", format="WAV")
    score = detector.score(read_recording(Recording("file", file.getvalue()), 60, RATE))
    assert score is not None
    assert score > 0.7, "telephone"
