"""Conditions in the engine: replies equal those of the slow reference, and depend on their own condition only."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stretto.engine.worker.sampler import SpeechSampler
from stretto.errors import CheckpointError
from stretto.family.plugin import plugin
from stretto.records.prompt import MAX_MAGNITUDE, Condition
from stretto.testing import assert_family_conforms
from stretto.testing.checkpoints import make_prompt, make_prompts, write_checkpoint
from stretto.testing.conformance import TIGHT, expected_rows, num_preemptions
from tests.engine.harness import Engine

pytestmark = pytest.mark.engine
CONDITIONED = plugin("conditioned")
assert CONDITIONED is not None
FAMILY = CONDITIONED.build(None)


@pytest.mark.nightly
def test_the_family_conforms(tmp_path: Path) -> None:
    """Conditions have no, some or all speaker vectors; text words come from a second stream two words ahead."""
    assert_family_conforms(CONDITIONED, tmp_path, backbone="llama")


def test_requests_with_different_conditions_share_no_blocks(tmp_path: Path) -> None:
    """The prompts have the same rows, so two blocks would be shared without the conditions."""
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


def test_largest_vectors_do_not_affect_other_replies(tmp_path: Path) -> None:
    """Their keys and values are finite, so KV blocks that other requests reuse contain no NaN."""
    folder = write_checkpoint(tmp_path, FAMILY, "conditioned", backbone="llama")
    prompts = make_prompts(FAMILY, 2)
    largest = Condition((0,), np.full((21, 3), MAX_MAGNITUDE, np.float32))
    with Engine(folder, max_model_len=160) as engine:
        alone = {name: answer.rows for name, answer in engine.run(prompts).items()}
    with Engine(folder, max_model_len=160, num_gpu_blocks_override=9) as engine:
        engine.run({f"large{at}": replace(prompt, condition=largest) for at, prompt in enumerate(prompts.values())})
        assert {name: answer.rows for name, answer in engine.run(prompts).items()} == alone


def test_other_backbones_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, FAMILY, "conditioned", layers=1, backbone="qwen3")
    expected = (
        "architectures: expected a Llama backbone, because conditioned has conditions, got StrettoQwen3ForCausalLM"
    )
    with pytest.raises(CheckpointError, match=expected):
        Engine(folder, max_model_len=160)


def test_vectors_are_not_among_the_parameters_that_vllm_logs(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, FAMILY, "conditioned", layers=1, backbone="llama")
    with Engine(folder, max_model_len=160) as engine:
        made = make_prompt(FAMILY, 3)
        engine.add("r", replace(made, condition=Condition((0,), np.ones((9, 3), np.float32))))
        scheduled = engine.scheduler.schedule().scheduled_new_reqs[0]
        assert scheduled.prompt.condition.vectors.shape == (9, 3)
        assert scheduled.sampling_params.extra_args is None
        assert "condition" not in scheduled.anon_repr()


@pytest.mark.nightly  # by day in float32, above, and in random histories
def test_bfloat16_replies_do_not_depend_on_batching(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of conditions stay float32. The first hidden state equals that of float32 within bfloat16's precision."""
    hidden = list[torch.Tensor]()
    sample = SpeechSampler._row

    def record(self: Any, states: torch.Tensor, *rest: Any) -> Any:
        hidden.append(states[0].float())
        return sample(self, states, *rest)

    monkeypatch.setattr(SpeechSampler, "_row", record)
    folder = write_checkpoint(tmp_path, FAMILY, "conditioned", layers=2, backbone="llama")
    prompts = make_prompts(FAMILY, 4)  # with all, some and no vectors
    alone = dict[str, Any]()
    first = dict[str, list[torch.Tensor]]()
    for dtype in ("float32", "bfloat16"):
        first[dtype] = []
        with Engine(folder, max_model_len=160, dtype=dtype) as engine:
            conditions = engine.model_state.model.conditions
            for name, prompt in prompts.items():
                hidden.clear()
                sampling = prompt.sampling  # of the float32 replies, only the beginning is used
                short = replace(
                    prompt, sampling=replace(sampling, audio=replace(sampling.audio, min_rows=1, max_rows=1))
                )
                alone[name] = engine.run({name: short if dtype == "float32" else prompt})[name].rows
                first[dtype].append(hidden[0])
    assert {each.dtype for each in conditions.parameters()} == {torch.float32}
    assert conditions.sums.dtype == torch.bfloat16
    for exact, found in zip(first["float32"], first["bfloat16"], strict=True):
        assert 0 < (exact - found).norm() < 0.1 * exact.norm()
    with Engine(folder, dtype="bfloat16", num_gpu_blocks_override=9, **TIGHT) as engine:
        answers = engine.run(prompts | {f"{name}-again": prompt for name, prompt in prompts.items()})
    assert num_preemptions(answers) > 0
    for name, answer in answers.items():
        assert answer.rows == alone[name.removesuffix("-again")], name
