"""PersonaPlex in the engine: text and codes equal those of the authors' code, in every voice, past its window."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.kyutai.lab.personaplex_replies import LONG, LONG_REPLY, REPLIES, user_codes
from plugins.kyutai.lab.random_personaplex import CONFIG
from plugins.kyutai.tests.moshi_release import check_frames
from plugins.kyutai.tests.personaplex_release import conversation, make_checkpoint, replies, request_of
from stretto.preprocessing.request import Preprocessor
from stretto.records.prompt import Prompt
from tests.engine.harness import Engine
from tests.engine.live_play import play
from tests.tiers import ASYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine
LENGTHS = (80, 1, 33, 64, 2)  # frames of the user
LIMITS: dict[str, Any] = {"max_model_len": 192, "max_num_seqs": 8}
SESSION_ROOM = 4  # blocks of 32 rows: two for the window, two because blocks are freed late


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("personaplex"))


@pytest.fixture(scope="module")
def preprocessor(checkpoint: Path) -> Preprocessor:
    return Preprocessor(checkpoint)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine(checkpoint, **LIMITS) as engine:
        yield engine


def test_personaplex_frames_match_the_published_code(
    engine: Engine, checkpoint: Path, preprocessor: Preprocessor
) -> None:
    """One reply is greedy, two are sampled; one has no role. The last is repeated from the prefix cache."""
    for number, wanted in enumerate(replies()["frames"]):
        prompt = preprocessor.prepare(request_of(number))
        check_frames(engine.run({"r": prompt})["r"], wanted, checkpoint, f"reply {number}")
    again = engine.run({"r": prompt})["r"]
    check_frames(again, wanted, checkpoint, f"reply {number} again")
    assert engine.is_clean()


def test_recording_codes_give_the_same_reply_as_the_voice_file(
    engine: Engine, checkpoint: Path, preprocessor: Preprocessor
) -> None:
    for number in (0, 1):  # the recording of the third voice is too short
        answer = engine.run({"r": preprocessor.prepare(request_of(number, by_codes=True))})["r"]
        check_frames(answer, replies()["frames"][number], checkpoint, f"reply {number}")


def test_fixture_covers_window_and_code_range() -> None:
    found = replies()
    assert found["frames"].shape[1] > 3 * CONFIG["context"]
    assert all(len(np.unique(frames[:, 0])) > 15 for frames in found["frames"])
    assert all(len(np.unique(frames[:, 1:])) > 400 for frames in found["frames"])
    assert len(found["long_frames"]) > LONG["context"]


def recordings(preprocessor: Preprocessor) -> tuple[list[Prompt], list[np.ndarray]]:
    """Return prompts with recordings of several lengths, and the frames of the authors' replies."""
    frames = replies()["frames"]
    prompts = [preprocessor.prepare(request_of(at % 3, length)) for at, length in enumerate(LENGTHS)]
    return prompts, [frames[at % 3][:length] for at, length in enumerate(LENGTHS)]


def test_batched_replies_do_not_affect_each_other(engine: Engine, checkpoint: Path, preprocessor: Preprocessor) -> None:
    prompts, wanted = recordings(preprocessor)
    answers = engine.run({f"r{at}": prompt for at, prompt in enumerate(prompts)}, {"r2": 3, "r3": 20})
    for at, answer in enumerate(answers.values()):
        check_frames(answer, wanted[at], checkpoint, f"r{at}")


@pytest.mark.nightly
def test_preempted_replies_are_recomputed_exactly(checkpoint: Path, preprocessor: Preprocessor) -> None:
    prompts = {f"r{at}": preprocessor.prepare(request_of(at % 3)) for at in range(4)}
    limits = LIMITS | {"max_num_batched_tokens": 16, "num_gpu_blocks_override": 5}
    with Engine(checkpoint, **limits) as engine:
        answers = engine.run(prompts, {"r1": 5, "r2": 9, "r3": 30})
    for at, answer in enumerate(answers.values()):
        check_frames(answer, replies()["frames"][at % 3], checkpoint, f"r{at}")
    assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0


@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
@pytest.mark.parametrize(
    ("seed", "slowest", "aborts", "others"), [(3, 12, 1, 2), *by_night((1, 1, 0, 5), (2, 40, 2, 3))]
)
def test_joining_stalled_and_leaving_sessions_do_not_affect_each_other(
    checkpoint: Path, preprocessor: Preprocessor, is_async: bool, seed: int, slowest: int, aborts: int, others: int
) -> None:
    """Whole recordings among them are preempted; sessions are not."""
    prompts, wanted = recordings(preprocessor)
    limits = LIMITS | {"max_num_batched_tokens": 32, "num_gpu_blocks_override": 4 * SESSION_ROOM + 6}
    with Engine(checkpoint, async_scheduling=is_async, **limits) as engine:
        answers = play(engine, prompts, seed, slowest, aborts, others)
        assert engine.scheduler.stats.values.live_rows_recomputed_total == 0
    assert len(answers) == len(LENGTHS) - aborts + others
    for name, answer in answers.items():
        check_frames(answer, wanted[int(name[1:])], checkpoint, name)


@pytest.mark.nightly  # 3,100 steps; a window of 23 rows is tested by day
def test_published_2999_row_window_is_exact(tmp_path: Path) -> None:
    checkpoint, wanted = make_checkpoint(tmp_path, **LONG), replies()["long_frames"]
    user = user_codes(len(REPLIES), len(wanted))
    prompt = Preprocessor(checkpoint).prepare(conversation(LONG_REPLY[0], *LONG_REPLY[1:], user))
    with Engine(checkpoint, max_model_len=3200, max_num_seqs=2) as engine:
        check_frames(engine.run({"r": prompt})["r"], wanted, checkpoint)
