"""Random histories: requests with their times, disconnects and slow reads, and the engine's limits."""

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from stretto.families.tiny.family import TINY
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto.streams.layout import words_of
from stretto.testing.checkpoints import make_prompt
from tests.small_vocabularies import TRACKED_CSM
from tests.speech_families import EIGHT_STREAMS, FORCED_BURSTS, LATENTS, MODULES

FAMILIES: dict[str, Family] = {
    "eight_streams": EIGHT_STREAMS,
    "tiny": TINY,
    "forced_bursts": FORCED_BURSTS,
    "small_tracked_csm": TRACKED_CSM,
    "modules": MODULES,
    "latents": LATENTS,
}
NUM_PROMPTS = 60
MAX_MODEL_LEN = 256
MAX_NUM_SEQS, MAX_BUDGET, MAX_BLOCKS = 10, 128, 64
LENGTHS = (1, 2, 5, 17, 31, 20, 32, 33, 9, 64, 28, 65, 150)
TEXT_ROWS = (1, 3, 8, 14, 30)
AUDIO_ROWS = (1, 70, 40, 3, 75, 11, 60)
REDRAWS = ((), (9,), (0, 0, 4, 30))  # frames of a prompt's attempts


@dataclass(frozen=True)
class Limits:
    """Limits of an engine; all except the first two may change between histories.

    Attributes:
        num_blocks: KV blocks of 32 rows.
        budget: Rows computed in a step.
        moods: Seed of the simulated load that makes adaptive replies lose and regain guidance; None for none.
    """

    is_async: bool = False
    is_caching: bool = True
    max_num_seqs: int = MAX_NUM_SEQS
    budget: int = MAX_BUDGET
    num_blocks: int = MAX_BLOCKS
    moods: int | None = None


@dataclass(frozen=True)
class Client:
    """A client that sends prompt number `prompt`, `gap` steps after the previous request.

    Attributes:
        leaves_after: Number of steps until the client disconnects, or None if it stays.
        leaves_late: True if the client disconnects while a step runs.
        reads_every: Number of steps between two reads of the client.
        host: Host of the client.
    """

    prompt: int
    gap: int = 0
    leaves_after: int | None = None
    leaves_late: bool = False
    reads_every: int = 1
    host: str = ""


@dataclass(frozen=True)
class History:
    """Sequence of events in one engine, which is empty at its start and at its end."""

    limits: Limits
    clients: tuple[Client, ...]


def limits(is_async: bool) -> st.SearchStrategy[Limits]:
    """Draw limits, which are usually tight."""
    return st.builds(
        Limits,
        is_async=st.just(is_async),
        is_caching=st.booleans(),
        max_num_seqs=st.one_of(st.integers(2, 4), st.integers(1, MAX_NUM_SEQS)),
        budget=st.one_of(st.integers(16, 32), st.integers(16, MAX_BUDGET)),
        moods=st.one_of(st.none(), st.integers(0, 99)),
        num_blocks=st.one_of(st.integers(4, 12), st.integers(8, 12), st.integers(8, 16), st.integers(6, MAX_BLOCKS)),
    )


def clients() -> st.SearchStrategy[Client]:
    return st.builds(
        Client,
        prompt=st.integers(0, len(REDRAWS) * NUM_PROMPTS - 1),
        gap=st.one_of(st.just(0), st.integers(0, 3), st.integers(0, 12)),
        leaves_after=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 90)),
        leaves_late=st.booleans(),
        reads_every=st.sampled_from((1, 1, 2, 7, 1000)),
        host=st.sampled_from(("", "", "", "a", "b")),
    )


def histories(is_async: bool) -> st.SearchStrategy[History]:
    many = st.one_of(st.lists(clients(), min_size=1, max_size=12), st.lists(clients(), min_size=8, max_size=12))
    return st.builds(History, limits(is_async), many.map(tuple))


def history_prompt(family: Family, index: int) -> Prompt:
    """Return prompt number `index`. Lengths, tasks, segments, guidance and temperatures cycle with different periods.

    Prompts in groups of three have a common prefix. One of the three differs only in a code, or in a bit of a latent,
    so that some blocks can be shared and others not.

    From NUM_PROMPTS on, they are the same prompts, drawn anew from some frames on.
    """
    attempt, index = divmod(index, NUM_PROMPTS)
    group = index // 3 * 3
    prompt = make_prompt(family, group, family.tasks[index % len(family.tasks)].name)
    steps = family.mechanism.steps
    schedules = steps.names if steps else ()
    rows = np.resize(prompt.rows, (LENGTHS[index * 5 % len(LENGTHS)], prompt.rows.shape[1]))
    rows = _with_codes(rows, family, index)
    sampling, latents = prompt.sampling, prompt.sampling.latents
    text, audio = TEXT_ROWS[index % len(TEXT_ROWS)], AUDIO_ROWS[index % len(AUDIO_ROWS)]
    greedy = index % 4 == 0
    is_guidable = family.guided_streams and family.task(prompt.task).has_audio_segment
    policy = ("always", "until_s", "adaptive")[index * 2 // 3 % 3] if family.guided_streams else "always"
    sampling = replace(
        sampling,
        policy=policy,
        guided_until_s=(1 + index % 7) / family.frame_rate if policy == "until_s" else None,
        text=replace(sampling.text, min_rows=text // 2, max_rows=text, temperature=0.0 if greedy else 0.9),
        audio=replace(sampling.audio, min_rows=audio // 2, max_rows=audio, temperature=0.0 if greedy else 0.8),
        guidance_scale=(2.0, 1.0, 3.0, 1.5)[index // 2 % 4] if is_guidable else 1.0,
        latents=None if latents is None else replace(latents, steps=1 + index % 4, tail_rows=index % 5),
        seed=7000 + index,
        redraw_from=REDRAWS[attempt],
        schedule=(None, *schedules)[index // 2 % (1 + len(schedules))],
    )
    return Prompt(prompt.task, rows, sampling, track=prompt.track)


def _with_codes(rows: np.ndarray, family: Family, index: int) -> np.ndarray:
    """Return `rows` with a different code on stream 1 in every third prompt, even in tasks that speak."""
    rows, at = rows.copy(), len(rows) // 2
    if family.layout.latents is not None:
        rows[at, 0] = family.layout.audio[0].start
        rows[at, 1:] = words_of(np.random.default_rng(index // 3).standard_normal(rows.shape[1] - 1))
        rows[at, 1] ^= index % 3 == 2  # the last bit
    elif index % 3 == 2:
        ids = family.layout.audio[1]
        rows[at, 1] = ids.start + index % len(ids)
    return rows
