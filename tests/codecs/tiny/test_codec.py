import json
import random
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stretto.codecs.base import Window, load_codec
from stretto.codecs.tiny import codec as tiny
from stretto.codecs.tiny.codec import FFT_SIZE, FLOOR, HOP, NUM_MELS, WINDOW, TinyCodec, log_mel, mel_filters
from stretto.errors import CheckpointError
from tests.codecs.conftest import make_codec
from tests.codecs.streaming import check_places

FRAMES = 61
BUNDLED = Path(__file__).parents[3] / "model_repository/language_model/1/checkpoint"


def random_codes(codec: TinyCodec, batch: int, frames: int = FRAMES, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(codec.spec.codebook_size, (batch, codec.spec.num_codebooks, frames), generator=generator)


def stream(codec: TinyCodec, codes: Tensor, sizes: Iterable[int]) -> Tensor:
    """Decode codes [B, K, T] in successive windows of the given numbers of frames."""
    state, first, total, parts = codec.initial_state(len(codes)), 0, codes.shape[2], []
    for size in sizes:
        last = min(first + size, total)
        left, right = min(first, codec.spec.left_frames), min(codec.spec.right_frames, total - last)
        position = torch.full((len(codes),), first)
        pcm, state = codec.decode(Window(codes[:, :, first - left : last + right], left, right, position, state))
        parts.append(pcm)
        first = last
        if first == total:
            break
    return torch.cat(parts, dim=1)


def one_shot(codec: TinyCodec, codes: Tensor) -> Tensor:
    return stream(codec, codes, [codes.shape[2]])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 25, "random", "growing"])
def test_concatenated_windows_equal_one_decode(codec: TinyCodec, size: int | str) -> None:
    rng = random.Random(0)
    sizes = {"random": [rng.randint(1, 9) for _ in range(FRAMES)], "growing": [3, 4, 8, 16, *[25] * 9]}.get(
        size, [size] * FRAMES
    )
    codes = random_codes(codec, 1)
    whole = one_shot(codec, codes)
    assert whole.shape == (1, FRAMES * codec.spec.samples_per_frame)
    assert whole.abs().mean() > 1e-3
    assert (stream(codec, codes, sizes) - whole).abs().max() <= 1e-5


@pytest.mark.parametrize("size", [1, 2, 5, 25])
def test_float64_windows_equal_one_shot_decode_within_rounding(size: int) -> None:
    codec = make_codec().double()
    codes = random_codes(codec, 1)
    assert (stream(codec, codes, [size] * FRAMES) - one_shot(codec, codes)).abs().max() <= 1e-11


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_an_utterance_shorter_than_the_context_streams_exactly(codec: TinyCodec, frames: int) -> None:
    codes = random_codes(codec, 1, frames)
    assert (stream(codec, codes, [1] * frames) - one_shot(codec, codes)).abs().max() <= 1e-5


def test_too_little_context_changes_the_decoded_samples(codec: TinyCodec) -> None:
    codes = random_codes(codec, 1)
    whole, first = one_shot(codec, codes), 20
    samples = codec.spec.samples_per_frame
    state = codec.decode(Window(codes[:, :, : first + 1], 0, 1, torch.tensor([0]), codec.initial_state(1)))[1]
    for left, right, is_exact in ((codec.spec.left_frames, 1, True), (2, 1, False), (codec.spec.left_frames, 0, False)):
        window = Window(codes[:, :, first - left : first + 4 + right], left, right, torch.tensor([first]), state)
        difference = (codec.decode(window)[0] - whole[:, first * samples : (first + 4) * samples]).abs().max()
        assert bool(difference <= 1e-5) is is_exact


def test_tiny_batched_decode_matches_single_decode(codec: TinyCodec) -> None:
    codes = random_codes(codec, 5)
    together = stream(codec, codes, [4, 8, 25, 25])
    for row in range(5):
        alone = stream(codec, codes[row : row + 1], [4, 8, 25, 25])
        assert (together[row] - alone[0]).abs().max() <= 1e-5


def test_utterances_at_different_positions_decode_as_one_batch(codec: TinyCodec) -> None:
    codes = random_codes(codec, 2)
    check_places(codec, codes, one_shot(codec, codes), 1e-5, (12, 30), 6)


def test_codec_state_is_the_phase_for_the_next_window(codec: TinyCodec) -> None:
    codes = random_codes(codec, 1)
    head = Window(codes[:, :, :21], 0, 1, torch.tensor([0]), codec.initial_state(1))
    state = codec.decode(head)[1]
    assert state.shape == (1, 1)
    assert state.dtype == torch.float64
    assert 0 <= state.item() < 1
    tail = [Window(codes[:, :, 20 - codec.spec.left_frames :], codec.spec.left_frames, 0, torch.tensor([20]), s)
            for s in (state, state + 0.5)]  # fmt: skip
    pcm = [codec.decode(window)[0] for window in tail]
    assert (pcm[0] - pcm[1]).abs().max() > 1e-3


def speech_codes() -> Tensor:
    """Return codes [1, K, T] of a flite utterance, `your flight to lisbon leaves from gate twenty`."""
    return torch.from_numpy(np.load(Path(__file__).parent / "speech_codes.npy")).long()[None]


def save_checkpoint(codec: TinyCodec, directory: Path) -> dict[str, Tensor]:
    (directory / tiny.CONFIG_FILE).write_text(json.dumps(asdict(codec.config)))
    tensors = {name: tensor.float().contiguous() for name, tensor in codec.state_dict().items()}
    save_file(tensors, directory / tiny.WEIGHTS_FILE)
    return tensors


def test_saved_codec_decodes_identically_after_loading(codec: TinyCodec, tmp_path: Path) -> None:
    save_checkpoint(codec, tmp_path)
    loaded = load_codec("tiny", tmp_path)
    codes = random_codes(codec, 1, 9)
    assert loaded.spec == codec.spec
    assert torch.allclose(one_shot(loaded, codes), one_shot(codec, codes), atol=1e-6)


@pytest.mark.parametrize("name", [tiny.CONFIG_FILE, tiny.WEIGHTS_FILE])
def test_missing_codec_file_is_reported(codec: TinyCodec, tmp_path: Path, name: str) -> None:
    save_checkpoint(codec, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        tiny.load(tmp_path)


def test_error_names_missing_unknown_or_misshapen_tensors(codec: TinyCodec, tmp_path: Path) -> None:
    tensors = save_checkpoint(codec, tmp_path)
    del tensors["quantiser.mean"]
    tensors["surplus"] = torch.zeros(1)
    tensors["quantiser.basis"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / tiny.WEIGHTS_FILE)
    expected = r"missing \['quantiser.mean'\], unknown \['surplus'\], wrong shape \['quantiser.basis'\]"
    with pytest.raises(CheckpointError, match=expected):
        tiny.load(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"num_codebooks": 3}', '{"vocoder": {"colour": 1}}'])
def test_a_config_that_does_not_parse_is_a_checkpoint_error(codec: TinyCodec, tmp_path: Path, text: str) -> None:
    save_checkpoint(codec, tmp_path)
    (tmp_path / tiny.CONFIG_FILE).write_text(text)
    with pytest.raises(CheckpointError, match=tiny.CONFIG_FILE):
        tiny.load(tmp_path)


def test_partial_pcm_frame_is_encoded_as_a_whole_frame(codec: TinyCodec) -> None:
    samples = codec.spec.samples_per_frame
    for length, frames in ((0, 0), (1, 1), (samples, 1), (samples + 1, 2)):
        codes = codec.encode(np.zeros(length, dtype=np.float32))
        assert codes.shape == (codec.spec.num_codebooks, frames)
        assert codes.dtype == np.int64


def slow_codes(codec: TinyCodec, pcm: np.ndarray) -> np.ndarray:
    """Encode samples [n] to codes [K, T] frame by frame: a DFT of each hop, then each codebook's nearest entry."""
    per_frame, vq = codec.spec.samples_per_frame, codec.quantiser
    padded = np.concatenate([np.zeros(FFT_SIZE), pcm, np.zeros(-len(pcm) % per_frame + FFT_SIZE)])
    window, filters = torch.hann_window(WINDOW).double().numpy(), mel_filters().double().numpy()
    codes = []
    for first in range(0, len(pcm), per_frame):
        mels = []
        for hop in range(first, first + per_frame, HOP):
            centre = FFT_SIZE + hop + HOP // 2
            part = padded[centre - WINDOW // 2 : centre + WINDOW // 2] * window
            mels.append(np.log(np.maximum(filters @ np.abs(np.fft.rfft(part, FFT_SIZE)), FLOOR)))
        residual = (np.concatenate(mels) - vq.mean.double().numpy()) @ vq.basis.double().numpy()
        codes.append([])
        for codebook in vq.codebooks.double().numpy():
            codes[-1].append(int(np.square(codebook - residual).sum(1).argmin()))
            residual = residual - codebook[codes[-1][-1]]
    return np.array(codes).T


# One sample, about a hop, about a frame of 640, no multiple of either, and just over 30 s.
@pytest.mark.parametrize("length", [1, 159, 161, 639, 641, 7919, 480_001])
def test_codes_match_a_slow_loop_at_any_length(codec: TinyCodec, length: int) -> None:
    pcm = np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32)
    pcm[: length // 2] *= np.linspace(0, 3, length // 2, dtype=np.float32)  # loud and quiet frames
    codes, expected = codec.encode(pcm), slow_codes(codec, pcm)
    assert codes.shape == expected.shape
    assert (codes != expected).mean() < 1e-3  # vectors that are equally near in float32


@pytest.fixture(scope="module")
def bundled() -> TinyCodec:
    return tiny.load(BUNDLED)


@pytest.mark.skipif(not (BUNDLED / tiny.WEIGHTS_FILE).exists(), reason="no bundled weights")
class TestBundledWeights:
    def test_bundled_codec_streams_exactly(self, bundled: TinyCodec) -> None:
        codes = random_codes(bundled, 1, 60)
        assert (stream(bundled, codes, [4, 8, 16, 25, 25]) - one_shot(bundled, codes)).abs().max() <= 1e-5

    def test_decoded_audio_mel_matches_its_codes(self, bundled: TinyCodec) -> None:
        """The mel frames of decoded codes are those of the codes, with an error well below the variance."""
        codes = speech_codes()
        wanted = bundled.quantiser.decode(codes)[0].reshape(-1, NUM_MELS)
        heard = log_mel(one_shot(bundled, codes)[0]).double()
        inner = slice(4, -4)
        error = (heard - wanted)[inner].square().mean() / wanted[inner].var()
        assert 10 * error.log10() < -8

    def test_reencoding_recovers_many_first_codebook_codes(self, bundled: TinyCodec) -> None:
        codes = speech_codes()
        again = bundled.encode(one_shot(bundled, codes)[0].numpy())
        assert (again[0] == codes[0, 0].numpy()).mean() > 0.4  # chance: 1 / 256

    def test_bundled_codec_files_are_small(self) -> None:
        assert sum((BUNDLED / name).stat().st_size for name in (tiny.CONFIG_FILE, tiny.WEIGHTS_FILE)) < 4_000_000
        assert {str(tensor.dtype) for tensor in load_file(BUNDLED / tiny.WEIGHTS_FILE).values()} >= {"torch.float16"}


def test_a_random_codec_is_reproducible() -> None:
    codes = random_codes(make_codec(), 1, 5)
    assert torch.equal(one_shot(make_codec(), codes), one_shot(make_codec(), codes))
