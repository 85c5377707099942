"""Pocket TTS in the engine: latents are the authors' within the bound of a nudge, and replies end alike."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stretto.families.registry import family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from tests.engine.harness import Engine
from tests.pocket_release import KINDS, convert_release, reply
from tests.tiers import by_night

pytestmark = pytest.mark.engine
TIGHT = {"max_num_batched_tokens": 24, "num_gpu_blocks_override": 5, "max_model_len": 128}
# Differences between kernels: a multiple of the spread of a nudge of 1e-6, and of the level.
SPREAD, SHARE = 16, 1e-5


def prompt_of(checkpoint: Path, text: str, seed: int) -> Prompt:
    prompt = Preprocessor(checkpoint).prepare(RawRequest(text=text, options='{"voice": "alba"}'))
    return replace(prompt, sampling=replace(prompt.sampling, seed=seed))


@pytest.mark.parametrize("kind", ["english", *by_night(*KINDS[1:])])
def test_latents_and_ends_are_the_authors(tmp_path: Path, kind: str) -> None:
    checkpoint, expected = convert_release(tmp_path, kind), reply(kind)
    family = family_at(checkpoint)
    prompt = prompt_of(checkpoint, expected.text, expected.seed)
    voice = family.voices.index("alba")
    assert voice == 0
    assert prompt.rows[21:-1, 0].tolist() == expected.tokens
    others = {f"r{index}": prompt_of(checkpoint, text, index) for index, text in enumerate(("one more", "and a third"))}
    with Engine(checkpoint, **TIGHT) as engine:
        alone = engine.run({"own": prompt})["own"]
        assert engine.run({"own": prompt, **others}, {"r1": 3})["own"].rows == alone.rows
        assert engine.is_clean()
    rows = np.array(alone.rows, np.int64)
    assert rows[-1, 0] == family.end_of_reply
    last = family.layout.audio[0][1]
    assert np.flatnonzero(rows[:, 0] == last).tolist() == [expected.ended]
    assert len(rows) - 1 == len(expected.latents) == expected.ended + expected.tail
    difference = np.abs(latents_of(rows[:-1, 1:].astype(np.int32)) - expected.latents).max(1)
    assert (difference <= SPREAD * expected.nudged + SHARE * expected.latents.std()).all(), difference.max()
