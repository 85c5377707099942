"""Moshi in the engine: text and codes equal those of the authors' code, greedy and sampled, past its window."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.kyutai.lab.moshi_replies import LONG
from plugins.kyutai.lab.random_moshi import CONFIG
from plugins.kyutai.tests.moshi_release import SEEDS, check_frames, frames_of, make_checkpoint, make_prompt, replies
from stretto.records.prompt import Prompt
from tests.engine.harness import Engine
from tests.engine.live_play import play
from tests.tiers import ASYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine
LENGTHS = (80, 1, 33, 64, 2, 80)  # frames of the user; more than three windows of 24 rows
SESSION_ROOM = 4  # blocks of 32 rows: two for the window, two because blocks are freed late


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("moshi"))


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine(checkpoint, max_model_len=128, max_num_seqs=4) as engine:
        yield engine


def test_moshi_frames_match_the_published_code(engine: Engine, checkpoint: Path) -> None:
    """One reply is greedy, two are sampled with different seeds; each alone."""
    found = replies()
    for user, wanted, seed in zip(found["user"], found["frames"], SEEDS, strict=True):
        answer = engine.run({"r": make_prompt(checkpoint, user, seed)})["r"]
        check_frames(answer, wanted, checkpoint, f"seed {seed}")
    assert engine.is_clean()


def test_moshi_fixture_exceeds_the_attention_window() -> None:
    found, window = replies(), CONFIG["context"]
    assert found["frames"].shape[1] > 3 * window
    assert all(len(np.unique(frames[:, 0])) > 15 for frames in found["frames"])
    assert all(len(np.unique(frames[:, 1:])) == CONFIG["card"] for frames in found["frames"])
    assert len(found["long_frames"]) > LONG["context"]


def test_batched_moshi_replies_do_not_affect_each_other(engine: Engine, checkpoint: Path) -> None:
    found = replies()
    prompts, wanted = {}, {}
    for at, length in enumerate(LENGTHS):
        user, seed = found["user"][at % 3][:, :length], SEEDS[at % 3]
        prompts[f"r{at}"], wanted[f"r{at}"] = make_prompt(checkpoint, user, seed), found["frames"][at % 3][:length]
    answers = engine.run(prompts, {"r2": 3, "r3": 20})
    for name, answer in answers.items():
        check_frames(answer, wanted[name], checkpoint, name)


def test_reply_ending_at_max_rows_is_marked_cut(engine: Engine, checkpoint: Path) -> None:
    found = replies()
    answer = engine.run({"r": make_prompt(checkpoint, found["user"][1], SEEDS[1], max_rows=40)})["r"]
    assert (frames_of(answer.rows, checkpoint) == found["frames"][1][:39]).all()
    assert answer.trailer is not None
    assert answer.trailer.was_cut


@pytest.mark.nightly
def test_preempted_moshi_replies_are_recomputed_exactly(checkpoint: Path) -> None:
    found = replies()
    prompts = {f"r{at}": make_prompt(checkpoint, found["user"][at % 3], SEEDS[at % 3]) for at in range(4)}
    limits: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 4, "max_num_batched_tokens": 16}
    with Engine(checkpoint, **limits, num_gpu_blocks_override=6) as engine:
        answers = engine.run(prompts, {"r1": 5, "r2": 9, "r3": 30})
    for at, answer in enumerate(answers.values()):
        check_frames(answer, found["frames"][at % 3], checkpoint, f"r{at}")
    assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0


def recordings(checkpoint: Path) -> tuple[list[Prompt], list[np.ndarray]]:
    """Return the prompts of recordings of several lengths, and the frames of the authors' replies."""
    found = replies()
    prompts = [
        make_prompt(checkpoint, found["user"][at % 3][:, :length], SEEDS[at % 3]) for at, length in enumerate(LENGTHS)
    ]
    return prompts, [found["frames"][at % 3][:length] for at, length in enumerate(LENGTHS)]


@pytest.mark.nightly  # by day, test_personaplex.py
@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
@pytest.mark.parametrize(
    ("seed", "slowest", "aborts", "others"), [(3, 12, 2, 4), *by_night((1, 1, 0, 6), (2, 40, 3, 4), (4, 4, 1, 0))]
)
def test_joining_stalled_and_leaving_sessions_do_not_affect_others(
    checkpoint: Path, is_async: bool, seed: int, slowest: int, aborts: int, others: int
) -> None:
    """Whole recordings among them are preempted; sessions are not."""
    prompts, wanted = recordings(checkpoint)
    limits: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 10, "max_num_batched_tokens": 32}
    blocks = 4 * SESSION_ROOM + 6
    with Engine(checkpoint, async_scheduling=is_async, **limits, num_gpu_blocks_override=blocks) as engine:
        answers = play(engine, prompts, seed, slowest, aborts, others)
        assert engine.scheduler.stats.values.live_rows_recomputed_total == 0
    assert len(answers) == len(LENGTHS) - aborts + others
    for name, answer in answers.items():
        check_frames(answer, wanted[int(name[1:])], checkpoint, name)


@pytest.mark.nightly  # by day, test_live_sessions.py
def test_sessions_without_a_reserve_are_recomputed_exactly(checkpoint: Path) -> None:
    prompts, wanted = recordings(checkpoint)
    limits: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 10, "max_num_batched_tokens": 32}
    with Engine(checkpoint, **limits, num_gpu_blocks_override=6, live_reserve=False) as engine:
        answers = play(engine, prompts, seed=5, slowest=20, others=3)
        assert engine.scheduler.stats.values.live_rows_recomputed_total > 0
    for name, answer in answers.items():
        check_frames(answer, wanted[int(name[1:])], checkpoint, name)


@pytest.mark.nightly  # 3,100 steps; the window of 24 rows is tested by day
def test_published_3000_row_window_is_exact(tmp_path: Path) -> None:
    found, checkpoint = replies(), make_checkpoint(tmp_path, **LONG)
    with Engine(checkpoint, max_model_len=3200, max_num_seqs=2) as engine:
        answer = engine.run({"r": make_prompt(checkpoint, found["long_user"], 7)})["r"]
    check_frames(answer, found["long_frames"], checkpoint)
