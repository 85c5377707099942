"""Generate a test fixture with replies of Moshi's authors' code on a small random release: text and codes by frame.

    python -m plugins.kyutai.lab.moshi_replies plugins/kyutai/tests/data/moshi_replies.npz
    python -m plugins.kyutai.lab.moshi_replies --check plugins/kyutai/tests/data/moshi_replies.npz

The first command writes the fixture, the second compares it with new replies. moshi 0.2.13 must be importable, with
einops and sphn. The model reads random codes of the user, three times as many frames as its window has. The first
reply is greedy. The others are sampled by the authors' rule with this project's noise: of the `top_k` most probable
ids, the one with the largest sum of scaled logit and Gumbel noise. Two of them run again in one batch, in which one
begins later than the other. A long reply reads 3,100 frames with the published window of 3,000 rows.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lab.authors.reply_fixture import run_arrays
from plugins.kyutai.lab.random_moshi import CONFIG, write_release
from stretto.testing.noise import uniform
from stretto_kyutai.moshi.convert import vocabulary

NUM_FRAMES = 80
NUM_LONG_FRAMES = 3100
SEEDS = (0, 1001, 1002)  # of the replies; the first is greedy
NOT_FOR_THE_MODEL = {"moshi_name", "mimi_name", "mimi_config_name", "tokenizer_name", "model_type"}
LONG: dict[str, Any] = {"context": 3000, "num_layers": 1, "depformer_num_layers": 1}
FIRST_CODES = vocabulary(CONFIG).first_codes
STEPS = CONFIG["dep_q"]

Sample = Callable[..., torch.Tensor]


def gumbel_sampling(
    seeds: list[int],
    rows: list[int],
    num_calls: int,
    num_codebooks: int,
    first_codes: Sequence[int] = FIRST_CODES,
) -> Sample:
    """Return a replacement of `sample_token` with this project's noise.

    Args:
        seeds: Seed of each reply of the batch.
        rows: Number of rows that each reply has read before this step, updated by the caller.
        num_calls: Number of calls per row, the first for the text.
        num_codebooks: Number of codebooks that are sampled; the ids of further calls are not used.
        first_codes: First id of each codebook.
    """
    calls = 0

    def sample(logits: torch.Tensor, use_sampling: bool, temperature: float, top_k: int) -> torch.Tensor:
        """Return ids of the shape of `logits` without the last dimension."""
        nonlocal calls
        stream = calls % num_calls
        calls = calls + 1
        if stream > num_codebooks:
            return logits.argmax(-1)
        first = 0 if stream == 0 else first_codes[stream - 1]
        made = []
        for number, own in enumerate(logits.flatten(0, -2)):
            scaled = own / temperature
            kept = torch.softmax(scaled, -1).topk(min(top_k, len(scaled))).indices.tolist()
            position = rows[number] + 1

            def score(token: int, number: int = number, scaled: torch.Tensor = scaled, at: int = position) -> float:
                noise = uniform(seeds[number], at, stream, first + token)
                return float(scaled[token]) - math.log(-math.log(noise))

            made.append(max(kept, key=score))
        return torch.tensor(made).view(logits.shape[:-1])

    return sample


@contextmanager
def sampling_by(sample: Sample | None) -> Iterator[None]:
    """Let the authors' code sample by `sample`; None for their own function."""
    from moshi.models import lm

    theirs = lm.sample_token
    lm.sample_token = sample or theirs
    try:
        yield
    finally:
        lm.sample_token = theirs


def load(folder: Path, **changed: Any) -> Any:
    """Return the authors' model of a release."""
    from moshi.models import loaders

    numbers = {key: value for key, value in {**CONFIG, **changed}.items() if key not in NOT_FOR_THE_MODEL}
    return loaders.get_moshi_lm(folder / "model.safetensors", numbers, dtype=torch.float32)


def reply(lm: Any, user: np.ndarray, seed: int) -> np.ndarray:
    """Return the frames of a reply to the user's codes [8, T], int64 [T, 9]: the text and the codes of each."""
    from moshi.models import LMGen

    rows = [0]
    frames = []
    sample = gumbel_sampling([seed], rows, 1 + STEPS, STEPS) if seed else None
    generator = LMGen(lm, use_sampling=seed > 0, check=True)
    with sampling_by(sample), generator.streaming(1):
        for frame in [0, *range(user.shape[1])]:  # the first call reads initial ids, whatever it is given
            said = generator.step(torch.from_numpy(user[None, :, frame : frame + 1]))
            rows[0] += 1
            if said is not None:
                frames.append(said[0, :, 0].tolist())
    return np.array(frames)


def batch(lm: Any, users: np.ndarray, seeds: list[int], starts: list[int]) -> list[np.ndarray]:
    """Return the frames of replies in one batch, each of which begins at its own step."""
    from moshi.models import LMGen

    num_frames = users.shape[2]
    count = len(users)
    rows = [0] * count
    frames = [list[list[int]]() for _ in range(count)]
    generator = LMGen(lm, use_sampling=True, support_out_of_sync=True)
    with sampling_by(gumbel_sampling(seeds, rows, 1 + STEPS, STEPS)), generator.streaming(count):
        for tick in range(num_frames + 1 + max(starts)):
            mask = torch.tensor([0 <= tick - start <= num_frames for start in starts])
            generator.set_exec_mask(mask)
            places = [min(max(tick - start - 1, 0), num_frames - 1) for start in starts]
            given = np.stack([user[:, place] for user, place in zip(users, places, strict=True)])
            said = generator.step(torch.from_numpy(given)[..., None])
            for number in torch.nonzero(mask)[:, 0].tolist():
                rows[number] += 1
                if tick - starts[number] >= 1:
                    frames[number].append(said[number, :, 0].tolist())
    return [np.array(own) for own in frames]


@torch.no_grad()
def make() -> dict[str, np.ndarray]:
    """Return the arrays of the fixture."""
    torch.set_num_threads(1)  # steps are too small to parallelise
    with tempfile.TemporaryDirectory() as name:
        folder = write_release(Path(name) / "release")
        users = np.random.default_rng(11).integers(0, CONFIG["card"], (len(SEEDS), 8, NUM_FRAMES))
        frames = [reply(load(folder), user, seed) for user, seed in zip(users, SEEDS, strict=True)]
        together = batch(load(folder), users[1:], list(SEEDS[1:]), [0, 7])
        for own, other in zip(frames[1:], together, strict=True):
            assert (own == other).all(), "the authors' replies change each other"
        long = np.random.default_rng(12).integers(0, CONFIG["card"], (8, NUM_LONG_FRAMES))
        long_frames = reply(load(write_release(Path(name) / "long", **LONG), **LONG), long, 7)
    made = {"user": users, "frames": np.stack(frames), "long_user": long, "long_frames": long_frames}
    return {key: value.astype(np.uint8) for key, value in made.items()}


if __name__ == "__main__":
    run_arrays(__doc__, make, tolerance=0.0)
