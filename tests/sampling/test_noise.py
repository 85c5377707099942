"""The noise is a uniform function of (seed, position, stream, token) and equals that of a plain loop."""

import math

import numpy as np
import torch

from stretto.engine.sampling import noise as on_host
from stretto.engine.sampling.noise import attempt_keys, gaussian, gumbel, redraw_keys, seed_key, stream_keys
from stretto.testing import noise as reference

# Seed 7, rows at positions 0, 1 and 4095, the first three words.
GAUSSIAN = [
    [-0.1136656403541565, 0.5944564938545227, 0.7542343735694885],
    [0.6311299204826355, -0.6657699346542358, -2.2824959754943848],
    [-0.32574647665023804, -1.3336848020553589, 0.21745628118515015],
]
SEEDS = (0, 1, 7, (1 << 31) - 1, 1 << 31, (1 << 32) + 5, (1 << 63) - 1)


def uniform(own: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(on_host.uniform(own.numpy(), tokens.numpy()))


def keys(seed: int, positions: list[int], num_streams: int) -> torch.Tensor:
    seeds = np.full(len(positions), seed_key(seed), np.int32)
    return torch.from_numpy(stream_keys(seeds, np.array(positions, np.int32), num_streams))


def test_noise_matches_the_reference_loop() -> None:
    tokens = torch.tensor([0, 1, 255, 160_391])
    for seed in SEEDS:
        for row, position in zip(keys(seed, [0, 1, 4095, 30_000], 3), [0, 1, 4095, 30_000], strict=True):
            noise = uniform(row[:, None], tokens)
            for stream in range(3):
                for column, token in enumerate(tokens.tolist()):
                    assert noise[stream, column].item() == reference.uniform(seed, position, stream, token)


def test_redraw_noise_matches_the_reference_loop_and_is_independent() -> None:
    tokens = torch.arange(200)
    first = keys(7, [12], 2)
    again = uniform(redraw_keys(first)[0, 1], tokens)
    assert again.tolist() == [reference.uniform(7, 12, 1, token, is_redraw=True) for token in range(200)]
    assert abs(torch.corrcoef(torch.stack([again, uniform(first[0, 1], tokens)]))[0, 1].item()) < 0.2


def test_rows_that_are_drawn_anew_have_the_noise_of_the_reference_loop() -> None:
    numbers = np.arange(5, dtype=np.int32)
    own = attempt_keys(np.full(5, seed_key(7), np.int32), numbers)
    noise = on_host.uniform(stream_keys(own, np.full(5, 12, np.int32), 2)[:, 1], np.full(5, 3))
    assert noise.tolist() == [reference.uniform(7, 12, 1, 3, attempt=number) for number in range(5)]
    assert own[0] == seed_key(7)
    assert len({*noise.tolist()}) == 5


def test_noise_does_not_depend_on_the_rest_of_the_batch() -> None:
    together = keys(11, [5, 6, 7], 4)
    assert torch.equal(together[1], keys(11, [6], 4)[0])
    columns = torch.arange(50)
    assert torch.equal(uniform(together[1, 2], columns)[[3, 40]], uniform(together[1, 2], columns[[3, 40]]))


def test_noise_is_uniform_and_never_0_or_1() -> None:
    noise = uniform(keys(3, list(range(200)), 5)[..., None], torch.arange(200))
    assert noise.min() > 0
    assert noise.max() < 1
    counts = torch.histc(noise, 20, 0, 1)
    expected = noise.numel() / 20
    assert (counts - expected).abs().max() < 5 * math.sqrt(expected)


def test_neighbouring_streams_positions_and_tokens_are_uncorrelated() -> None:
    noise = uniform(keys(9, list(range(300)), 6)[..., None], torch.arange(300))
    for first, second in (
        (noise[1:], noise[:-1]),
        (noise[:, 1:], noise[:, :-1]),
        (noise[..., 1:], noise[..., :-1]),
    ):
        pair = torch.stack([first.flatten(), second.flatten()])
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.01


def test_gumbel_max_samples_from_the_softmax() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    noise = torch.from_numpy(gumbel(keys(4, list(range(20_000)), 1).numpy(), np.arange(4)))
    frequency = torch.bincount((logits + noise).argmax(-1), minlength=4) / 20_000
    assert torch.allclose(frequency, logits.softmax(0), atol=0.015)


def test_gaussian_noise_matches_its_definition() -> None:
    """It is Box-Muller of two uniforms per key. The first numbers are fixed, so that a seed's voice stays the same."""
    own = stream_keys(np.array([seed_key(7)] * 3, np.int32), np.array([0, 1, 4095], np.int32), 9)[:, 1:]
    for step in range(3):
        one, other = (on_host.uniform(own, np.full(1, 2 * step + k)).astype(np.float64) for k in (0, 1))
        expected = np.sqrt(-2 * np.log(one)) * np.cos(2 * np.pi * other)
        assert np.array_equal(gaussian(own, step), expected.astype(np.float32))
    assert gaussian(own)[:, :3].tolist() == GAUSSIAN


def test_numpy_and_torch_gaussian_noise_agree() -> None:
    own = stream_keys(np.array([seed_key(3)] * 4000, np.int32), np.arange(4000, dtype=np.int32), 65)[:, 1:]
    here, there = gaussian(own), gaussian(torch.from_numpy(own)).numpy()
    assert here.dtype == there.dtype == np.float32
    assert (here != there).sum() <= 2
    assert np.abs(here - there).max() < 1e-6


def test_gaussian_noise_has_gaussian_moments() -> None:
    own = stream_keys(np.array([seed_key(5)] * 20_000, np.int32), np.arange(20_000, dtype=np.int32), 33)[:, 1:]
    noise = gaussian(own).astype(np.float64)
    assert abs(noise.mean()) < 0.005
    assert abs(noise.std() - 1) < 0.005
    assert abs((noise**4).mean() - 3) < 0.05
    others = [(noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1]), (noise, gaussian(own, 1))]
    for one, other in others:
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.005
