"""Conditions in the engine: replies equal those of the slow reference, and depend on their own condition only."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stretto.records.prompt import Condition
from stretto.testing import assert_family_conforms
from stretto.testing.checkpoints import make_prompt, write_checkpoint
from stretto.testing.conformance import expected_rows
from tests.engine.harness import Engine
from tests.small_vocabularies import CONDITIONED

pytestmark = pytest.mark.engine
FAMILY = CONDITIONED.build(None)


def test_the_family_conforms(tmp_path: Path) -> None:
    """Conditions have no, some or all speaker vectors; text words come from a second stream two words ahead."""
    assert_family_conforms(CONDITIONED, tmp_path, backbone="llama")


def test_requests_with_other_conditions_share_no_blocks(tmp_path: Path) -> None:
    """The prompts have the same rows, of which two blocks would be shared."""
    folder = write_checkpoint(tmp_path, FAMILY, "conditioned", backbone="llama")
    vectors = np.random.default_rng(1).standard_normal((2, 9, 3)).astype(np.float32)
    conditions = Condition((0, 3), vectors[0]), Condition((0, 3), vectors[1]), Condition((1,), vectors[1]), None
    prompts = {f"r{at}": replace(make_prompt(FAMILY, 3), condition=each) for at, each in enumerate(conditions)}
    expected = expected_rows(folder, FAMILY, prompts)
    assert len({str(rows) for rows in expected.values()}) == len(prompts)
    with Engine(folder, max_model_len=160) as engine:
        for turn in range(2):
            for name, prompt in prompts.items():
                found = engine.run({f"{name}-{turn}": prompt})[f"{name}-{turn}"]
                assert found.rows == expected[name], (name, turn)
        assert engine.is_clean()
