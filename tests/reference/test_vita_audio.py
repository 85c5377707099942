"""The recomputing reference equals VITA-Audio's own `generate` on every schedule."""

import json
from pathlib import Path
from typing import Any

import pytest

from lab.releases import random_vita
from tests.reference.vita_audio import VitaReference, drawn_by
from tests.tiers import by_night

pytestmark = pytest.mark.slow
RECORD: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data" / "vita_audio_replies.json").read_text())


@pytest.fixture(scope="module")
def reference() -> VitaReference:
    return VitaReference(RECORD["config"], random_vita.tensors(RECORD["config"], RECORD["seed"]))


def test_vita_audio_fixture_is_unambiguous() -> None:
    assert RECORD["config"] == random_vita.SMALL
    assert min(reply["lead"] for reply in RECORD["replies"]) > 1e-4
    assert all(len(set(reply["ids"])) > 8 for reply in RECORD["replies"] if reply["penalty"] > 1)


BY_DAY = ("turbo", "vanilla")
SCHEDULES = [*BY_DAY, *by_night(*(name for name in RECORD["schedules"] if name not in BY_DAY))]


@pytest.mark.parametrize("name", SCHEDULES)
def test_recomputed_vita_audio_replies_match_the_authors(reference: VitaReference, name: str) -> None:
    replies = [reply for reply in RECORD["replies"] if reply["schedule"] == name]
    assert len(replies) == 9
    for reply in replies[::4]:  # each of three prompts, each of three penalties
        schedule, size = RECORD["schedules"][name], len(reply["ids"])
        assert reference.reply(reply["prompt"], schedule, size, reply["penalty"]) == reply["ids"]


def test_schedule_maps_each_token_to_its_module() -> None:
    turbo, few = drawn_by([1, 10], 10), drawn_by([1, 4, 3, 2], 3)
    assert [next(turbo) for _ in range(13)] == [-1, *range(10), -1, 0]
    assert [next(few) for _ in range(13)] == [-1, 0, 1, 2, -1, -1, -1, -1, 0, 1, -1, -1, -1]
