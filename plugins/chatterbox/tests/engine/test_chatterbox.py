"""Chatterbox T3 in the engine: codes equal those of the authors' loops, with penalties, greedy and sampled.

English and Multilingual are guided; Turbo and Nano are penalized after top-k and top-p.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plugins.chatterbox.tests.chatterbox_release import (
    RECORD,
    RELEASES,
    REPLIES,
    known_at,
    open_release,
    prompt_of,
    rows_of,
    write,
)
from stretto.family.plugin import family_at
from stretto.records.prompt import InputAudio, Prompt
from stretto.weights.loading import open_tensors
from stretto_chatterbox.family import END_OF_SPEECH, ChatterboxVocabulary, TurboVocabulary
from tests.engine.harness import Engine
from tests.tiers import ASYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine
# Prompts in chunks, memory for little more than one of six CFG pairs, which are preempted together, or two of six
# replies.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 6, "num_gpu_blocks_override": 9}
ARRIVALS = {"r2": 3, "r3": 4, "r4": 9, "r5": 9}
LEAST_LEAD = {"english": 2e-3, "multilingual": 2e-3, "turbo": 5e-4, "nano": 5e-4}


@dataclass(frozen=True)
class Converted:
    """Checkpoint of a small release."""

    release: str
    checkpoint: Path

    def prompts(self) -> dict[str, Prompt]:
        """Return the prompts of all fixture replies."""
        template, family, number = open_release(self.checkpoint), family_at(self.checkpoint), self.num_codes
        replies = enumerate(REPLIES[self.release])
        return {f"r{at}": prompt_of(reply, number, template, family) for at, reply in replies}

    def expected(self) -> dict[str, list[list[int]]]:
        """Return the rows of all fixture replies."""
        known = known_at(self.checkpoint)
        return {f"r{at}": rows_of(reply, known) for at, reply in enumerate(REPLIES[self.release])}

    @property
    def num_codes(self) -> int:
        """Maximum number of codes of a reply."""
        return RECORD[self.release]["num_codes"]

    @property
    def is_guided(self) -> bool:
        """True if every frame is guided."""
        return isinstance(known_at(self.checkpoint), ChatterboxVocabulary)

    def table(self) -> np.ndarray:
        """Return the embedding table."""
        names = ("model.embed_tokens.weight", "transformer.wte.weight")
        tensors = open_tensors(self.checkpoint)
        return next(tensors[name] for name in names if name in tensors).float().numpy()


@pytest.fixture(scope="module", params=["english", "turbo", *by_night("multilingual", "nano")])
def converted(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Converted:
    return Converted(request.param, RELEASES[request.param](tmp_path_factory.mktemp(request.param)))


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def engine(converted: Converted, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(converted.checkpoint, max_model_len=256, async_scheduling=request.param) as running:
        yield running


@pytest.mark.parametrize("release", RELEASES)
def test_fixture_is_numerically_unambiguous(release: str) -> None:
    """Every id leads clearly.

    Both kinds of end occur, and so do ids that are not codes, which the guided loop does not mask.
    """
    replies = REPLIES[release]
    assert min(reply["lead"] for reply in replies) > LEAST_LEAD[release]
    assert {reply["codes"][-1] == END_OF_SPEECH for reply in replies} == {True, False}
    if "weight" in replies[0]:
        assert any(code > END_OF_SPEECH for reply in replies for code in reply["codes"])


def check(converted: Converted, answers: dict[str, Any]) -> None:
    """Assert that answers equal the fixture replies, and that no row of a guided reply is unguided."""
    for name, rows in converted.expected().items():
        assert answers[name].rows == rows, name
        assert answers[name].trailer is not None
        assert answers[name].trailer.num_guided_frames == (len(rows) - 1 if converted.is_guided else 0)


def test_codes_match_the_published_model(converted: Converted, engine: Engine) -> None:
    """Batched, then again with prompts from the prefix cache."""
    for arrivals in (ARRIVALS, {}):
        check(converted, engine.run(converted.prompts(), arrivals))
    assert engine.is_clean()


@pytest.mark.nightly
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_replies_continue_after_preemption(converted: Converted, is_async: bool) -> None:
    with Engine(converted.checkpoint, max_model_len=128, async_scheduling=is_async, **TIGHT) as running:
        answers = running.run(converted.prompts(), ARRIVALS)
        assert running.is_clean()
    check(converted, answers)
    assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0


def test_voice_vectors_give_the_speech_of_the_named_voice(converted: Converted, engine: Engine) -> None:
    """A voice is given as vectors for all rows, or for its last row if that contains the emotion.

    Both requests of a CFG pair read the vectors. Requests with different vectors share no blocks.
    """
    known, table = known_at(converted.checkpoint), converted.table()
    template, family, first = (
        open_release(converted.checkpoint),
        family_at(converted.checkpoint),
        REPLIES[converted.release][0],
    )
    prompt, voices, requests = converted.prompts()["r0"], family.voices, dict[str, Prompt]()
    for name in voices:
        rows = write(template, family, first["text"], name, first.get("language"))
        named = requests[name] = replace(prompt, rows=rows)
        if isinstance(known, TurboVocabulary):
            own = table[known.speaker(name)][None]
            requests[f"recorded {name}"] = replace(named, audios=(InputAudio(0, 1, own),))
            continue
        own, size = table[list(known.voice(name))], known.num_voice_rows
        requests[f"recorded {name}"] = replace(requests[voices[0]], audios=(InputAudio(0, size, own),))
        requests[f"changed {name}"] = replace(named, audios=(InputAudio(size - 1, 1, own[-1:]),))
    if isinstance(known, TurboVocabulary):
        other = table[known.speaker("default")][None]
        requests["other"] = replace(requests["anna"], audios=(InputAudio(0, 1, other),))
    answers = engine.run(requests)
    for name in requests:
        if name != "other":
            assert answers[name].rows == answers[name.rpartition(" ")[2]].rows, name
    assert answers["default"].rows != answers["anna"].rows
    assert "other" not in answers or answers["other"].rows != answers["anna"].rows
    assert engine.is_clean()


@pytest.mark.parametrize("converted", ["english"], indirect=True)
def test_unconditional_request_depends_on_text_length_only(converted: Converted, engine: Engine) -> None:
    """Texts of equal length have the same unconditional request and share its blocks.

    A longer text has a different one, which another test compares with the authors' code.
    """
    template, family, first = (
        open_release(converted.checkpoint),
        family_at(converted.checkpoint),
        converted.prompts()["r0"],
    )
    other = replace(first, rows=write(template, family, "hollo the answer"))
    rows = first.rows[:, 0] != other.rows[:, 0]
    assert rows.any()
    assert (first.rows[:, 1] == other.rows[:, 1]).all()
    answers = engine.run({"first": first, "other": other, "again": first}, {"other": 70, "again": 140})
    assert answers["other"].rows != answers["first"].rows
    assert answers["again"].rows == answers["first"].rows
