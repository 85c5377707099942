"""In random histories, every reply equals the reference, and no state remains."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.engine.histories import FAMILIES, NUM_PROMPTS, Client, History, Limits, histories
from tests.engine.histories_run import Stage
from tests.tiers import ASYNC_BY_DAY

pytestmark = pytest.mark.engine

COMMON = settings(
    settings.get_profile("default"), deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
# On every run the same histories, so that a failure is the change's, and few beside those made for what must be seen;
# by night different ones each time, and enough to cover every case.
settings.register_profile("histories", COMMON, max_examples=4, derandomize=True, database=None)
settings.register_profile("nightly", COMMON, max_examples=700, phases=[Phase.explicit, Phase.generate, Phase.shrink])
PROFILE = settings.get_profile(os.environ.get("HISTORIES", "histories"))
# Share of the histories: these take longest.
SHARE = {"tracked_csm": 0.5, "forced_bursts": 0.5, "latents": 0.75, "modules": 0.34}
ENOUGH = 42  # histories of both kinds of scheduling, to see everything

# Added to the number of a prompt, the second or third attempt to speak it.
SECOND = NUM_PROMPTS
THIRD = 2 * NUM_PROMPTS

# Cases that families without multi-token steps cannot have.
OF_BURSTS = ("preempted bursts", "bursts in parts")
# Cases that families without guidance cannot have.
OF_PAIRS = ("guided", "preempted pairs", "dropped", "restored")

# Histories built so that each family meets the named case and its consequences.
MADE = {
    "pairs with blocks for little more than one are preempted": (
        History(
            Limits(max_num_seqs=6, budget=48, num_blocks=11),
            tuple(
                Client(prompt, gap)
                for prompt, gap in ((1, 0), (4, 0), (8, 0), (15, 0), (20, 1), (25, 0), (29, 2), (32, 0))
            ),
        ),
        ("guided", "preempted", "preempted pairs", *OF_BURSTS),
    ),
    "halves go and come back": (
        History(
            Limits(max_num_seqs=8, budget=64, num_blocks=24, moods=3),
            tuple(
                Client(prompt, gap)
                for prompt, gap in ((3, 0), (4, 0), (8, 1), (13, 0), (17, 2), (21, 0), (22, 0), (39, 3))
            ),
        ),
        ("dropped", "restored"),
    ),
    "a host with short replies comes while another has taken all slots and blocks": (
        History(
            Limits(max_num_seqs=6, budget=48, num_blocks=16),
            (
                *(Client(prompt, host="many") for prompt in (1, 4, 8, 13, 15, 20, 25, 29)),
                *(Client(prompt, gap=9, host="few") for prompt in (3, 6, 1, 32)),
            ),
        ),
        ("skipped steps", "preempted"),
    ),
    "clients leave, some while a step runs, others read late, and one asks for too much": (
        History(
            Limits(max_num_seqs=4, budget=32, num_blocks=6),
            (
                Client(1, reads_every=1000),
                Client(6, leaves_after=12, leaves_late=True),
                Client(14, gap=1, leaves_after=3, reads_every=7),
                Client(19, leaves_after=2, reads_every=7),
                Client(27, gap=2, leaves_after=30, leaves_late=True),
                Client(12, reads_every=1000),
                Client(25, reads_every=2),
                Client(18, gap=1),
            ),
        ),
        ("left", "merged", "refused"),
    ),
    "clauses are given up, and generated again while others are preempted": (
        History(
            Limits(max_num_seqs=6, budget=48, num_blocks=11),
            (
                Client(1, leaves_after=12, leaves_late=True),
                Client(8, leaves_after=9),
                *(Client(prompt) for prompt in (4, 15, 20, 25)),
                Client(SECOND + 8, gap=10, leaves_after=12),
                Client(SECOND + 1, gap=3),
                Client(THIRD + 8, gap=9),
                Client(1),
            ),
        ),
        ("left", "guided", "preempted", "preempted pairs"),
    ),
}

# Failures that random histories have found, made short.
FOUND = {
    "the half of a younger pair was put before that of an older one": History(
        Limits(budget=20, is_caching=False), (Client(prompt=6), Client(prompt=30), Client(prompt=44))
    ),
    "a half came to run while its partner, preempted as it ended its text, did not": History(
        Limits(max_num_seqs=6, budget=20, num_blocks=8), (Client(prompt=33), Client(prompt=6), Client(prompt=45, gap=9))
    ),
    "a pair that left in the step in which it came was counted among who runs ever after": History(
        Limits(max_num_seqs=2), (Client(prompt=1, leaves_after=0, leaves_late=True), Client(prompt=6, gap=1))
    ),
    "a single reply that outgrows the cache was queued for ever": History(Limits(num_blocks=4), (Client(prompt=43),)),
}


# By day pairs on eight streams, and random histories of latents; by night what has fewer streams, depth, bursts or
# modules, and the histories below of latents, because most of those are about pairs.
NAMES = dict(zip(FAMILIES, ["eight_streams", "tiny", "bursts", "csm", "modules", "latents"], strict=True))
NIGHTLY = {"tiny", "bursts", "csm", "modules"}


def stages(nightly: set[str]) -> list[Any]:
    """Return the families as parameters; those of this name run by night."""
    marks = {name: [pytest.mark.nightly] if name in nightly else [] for name in NAMES.values()}
    return [pytest.param(key, id=name, marks=marks[name]) for key, name in NAMES.items()]


WITH_PAIRS = pytest.mark.parametrize("stage", stages(NIGHTLY | {"latents"}), indirect=True, scope="module")


@pytest.fixture(scope="module", params=stages(NIGHTLY))
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    running = Stage(tmp_path_factory.mktemp("checkpoint"), request.param)
    yield running
    running.close()


def is_seen(stage: Stage, what: str, seen: Counter[str]) -> bool:
    """Return True if histories contained `what` exactly if the family can have it."""
    cannot_be = OF_BURSTS if stage.family.mechanism.steps is None else ()
    if not stage.family.guided_streams:
        cannot_be += OF_PAIRS
    return (seen[what] > 0) == (what not in cannot_be)


@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
def test_random_history_replies_match_the_reference(stage: Stage, is_async: bool) -> None:
    @settings(PROFILE, max_examples=round(SHARE.get(stage.family.name, 1) * PROFILE.max_examples))
    @given(history=histories(is_async))
    def play(history: History) -> None:
        stage.play(history)

    play()
    seen = stage.seen
    if not is_async or PROFILE.max_examples < ENOUGH:
        return  # both kinds of scheduling together must have seen enough; few need not
    for what in ("left", "merged", "guided", "preempted", "preempted pairs", "refused", "dropped", *OF_BURSTS):
        assert is_seen(stage, what, seen), f"no history had any {what}: {seen}"
    # Those replies are not compared. A frame of CSM is six draws, so that more of its replies have one.
    assert seen["near ties"] <= 0.04 * seen["replies"], seen


@WITH_PAIRS
@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
@pytest.mark.parametrize("made", list(MADE))
def test_scripted_history_replies_match_the_reference(stage: Stage, made: str, is_async: bool) -> None:
    history, promised = MADE[made]
    before = stage.seen.copy()
    stage.play(replace(history, limits=replace(history.limits, is_async=is_async)))
    seen = stage.seen - before
    for what in promised:
        assert is_seen(stage, what, seen), f"it had no {what}: {seen}"
    assert seen["near ties"] == 0, "choose another prompt: this one's reply is not compared"


@WITH_PAIRS
@pytest.mark.parametrize("is_async", ASYNC_BY_DAY)
@pytest.mark.parametrize("found", list(FOUND))
def test_regressions_found_by_random_histories_stay_fixed(stage: Stage, found: str, is_async: bool) -> None:
    history = FOUND[found]
    stage.play(replace(history, limits=replace(history.limits, is_async=is_async)))
