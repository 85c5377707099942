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
from stretto.codecs.tiny.codec import TinyCodec
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
    assert (stream(codec, codes, [size] * FRAMES) - one_shot(codec, codes)).abs().max() <= 1e-10


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_an_utterance_shorter_than_the_context_streams_exactly(codec: TinyCodec, frames: int) -> None:
    codes = random_codes(codec, 1, frames)
    assert (stream(codec, codes, [1] * frames) - one_shot(codec, codes)).abs().max() <= 1e-5


def test_tiny_batched_decode_matches_single_decode(codec: TinyCodec) -> None:
    codes = random_codes(codec, 5)
    together = stream(codec, codes, [4, 8, 25, 25])
    for row in range(5):
        alone = stream(codec, codes[row : row + 1], [4, 8, 25, 25])
        assert (together[row] - alone[0]).abs().max() <= 1e-5


def test_utterances_at_different_positions_decode_as_one_batch(codec: TinyCodec) -> None:
    codes = random_codes(codec, 2)
    check_places(codec, codes, one_shot(codec, codes), 1e-5, (12, 30), 6)


def test_codec_state_decides_the_samples_of_the_next_window(codec: TinyCodec) -> None:
    codes = random_codes(codec, 1)
    state = codec.decode(Window(codes[:, :, :20], 0, 0, torch.tensor([0]), codec.initial_state(1)))[1]
    assert state.shape == (1, codec.decoder.state_size)
    assert state.dtype == torch.float64
    ends = codec.decoder.sizes
    for index in range(len(ends)):  # each part of the state is needed
        changed = state.clone()
        changed[:, sum(ends[:index]) : sum(ends[: index + 1])] += 0.3
        pcm = [codec.decode(Window(codes[:, :, 20:], 0, 0, torch.tensor([20]), each))[0] for each in (state, changed)]
        assert (pcm[0] - pcm[1]).abs().max() > 1e-4, index


def speech_codes() -> Tensor:
    """Return codes [1, K, T] of the teacher's utterance `Your flight to Lisbon leaves from gate twenty.`"""
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
    del tensors["encoder.enter.bias"]
    tensors["surplus"] = torch.zeros(1)
    tensors["quantiser.codebooks"] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / tiny.WEIGHTS_FILE)
    expected = "missing: encoder.enter.bias; unknown: surplus; wrong shape: quantiser.codebooks"
    with pytest.raises(CheckpointError, match=expected):
        tiny.load(tmp_path)


@pytest.mark.parametrize("text", ["{", '{"colour": 1}'])
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


@pytest.mark.parametrize("length", [1, 299, 301, 899, 901, 7919])
def test_codes_do_not_depend_on_the_silence_that_follows(codec: TinyCodec, length: int) -> None:
    pcm = np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32)
    codes = codec.encode(pcm)
    longer = codec.encode(np.concatenate([pcm, np.zeros(-length % codec.spec.samples_per_frame + 1800, np.float32)]))
    assert codes.shape[1] == -(-length // codec.spec.samples_per_frame)
    assert np.array_equal(codes, longer[:, : codes.shape[1]])


@pytest.fixture(scope="module")
def bundled() -> TinyCodec:
    return tiny.load(BUNDLED)


@pytest.mark.skipif(not (BUNDLED / tiny.WEIGHTS_FILE).exists(), reason="no bundled weights")
class TestBundledWeights:
    def test_bundled_codec_streams_exactly(self, bundled: TinyCodec) -> None:
        codes = random_codes(bundled, 1, 60)
        assert (stream(bundled, codes, [4, 8, 16, 25, 25]) - one_shot(bundled, codes)).abs().max() <= 1e-5

    def test_reencoding_recovers_many_first_codebook_codes(self, bundled: TinyCodec) -> None:
        codes = speech_codes()
        again = bundled.encode(one_shot(bundled, codes)[0].numpy())
        assert (again[0] == codes[0, 0].numpy()).mean() > 0.4  # chance: 1 / 256

    def test_bundled_codec_files_are_small(self) -> None:
        assert sum((BUNDLED / name).stat().st_size for name in (tiny.CONFIG_FILE, tiny.WEIGHTS_FILE)) < 9_500_000
        assert {str(tensor.dtype) for tensor in load_file(BUNDLED / tiny.WEIGHTS_FILE).values()} >= {"torch.float16"}


def test_a_random_codec_is_reproducible() -> None:
    codes = random_codes(make_codec(), 1, 5)
    assert torch.equal(one_shot(make_codec(), codes), one_shot(make_codec(), codes))
