"""VALL-E's language model in the engine: codes equal those of the authors' loop.

Guided codes equal two merged runs of transformers' GPT-2 over the same rows.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2Model

from benchmarks.checkpoints.random_espnet import KNOWN, convert
from stretto.families.valle.family import SOS_EOS
from stretto.family.base import Family
from stretto.family.plugin import config_at, family_at
from stretto.records.prompt import Prompt
from tests.engine.harness import Engine
from tests.tiers import ASYNC_BY_DAY
from tests.valle_release import REPLIES, open_valle, prompt_of

pytestmark = pytest.mark.engine
# Prompts in chunks, memory for little more than three of the replies: the others are preempted.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "num_gpu_blocks_override": 9}
ARRIVALS = {"r2": 3, "r3": 4, "r4": 9, "r5": 9}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("valle"))


@pytest.fixture(scope="module")
def family(checkpoint: Path) -> Family:
    return family_at(checkpoint)


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def engine(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(checkpoint, max_model_len=256, async_scheduling=request.param) as running:
        yield running


@pytest.fixture(scope="module")
def prompts(checkpoint: Path, family: Family) -> dict[str, Prompt]:
    template = open_valle(checkpoint, family)
    return {f"r{at}": prompt_of(reply, template, family) for at, reply in enumerate(REPLIES)}


def expected(reply: dict[str, Any]) -> list[list[int]]:
    """Return a reply's rows; the last row is the end, which was sampled or forced by the limit."""
    return [[KNOWN.codec + code] for code in reply["codes"][0]] + [[SOS_EOS]]


def test_fixture_is_numerically_unambiguous() -> None:
    """Every id leads clearly."""
    assert min(reply["drawn_lead"] for reply in REPLIES) > 1e-3


def test_codes_match_the_published_model(engine: Engine, prompts: dict[str, Prompt]) -> None:
    """Replies are batched, then repeated with cached prompts; a limit ends one reply early."""
    sampling = prompts["r0"].sampling
    cut = replace(prompts["r0"], sampling=replace(sampling, audio=replace(sampling.audio, max_rows=4)))
    for arrivals in (ARRIVALS, {}):
        answers = engine.run({**prompts, "cut": cut}, arrivals)
        for at, reply in enumerate(REPLIES):
            assert answers[f"r{at}"].rows == expected(reply), at
        assert answers["cut"].rows == [*expected(REPLIES[0])[:4], [SOS_EOS]]
    assert engine.is_clean()


def test_guided_replies_match_the_two_run_reference(
    engine: Engine, checkpoint: Path, family: Family, prompts: dict[str, Prompt]
) -> None:
    greedy = prompts["r0"].sampling
    guided = {name: replace(prompts[name], sampling=replace(greedy, guidance_scale=2.0)) for name in ARRIVALS}
    answers = engine.run(guided, ARRIVALS)
    reference = GuidedReference(checkpoint, family)
    for name, prompt in guided.items():
        rows, lead = reference.rows(prompt)
        assert lead > 1e-3, name
        assert answers[name].rows == rows, name
        assert answers[name].trailer is not None
        assert answers[name].trailer.num_guided_frames == len(rows) - 1
    assert any(answers[name].rows != expected(REPLIES[int(name[1:])]) for name in guided)


@pytest.mark.nightly
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_preempted_replies_are_recomputed_exactly(checkpoint: Path, prompts: dict[str, Prompt], is_async: bool) -> None:
    with Engine(checkpoint, max_model_len=128, async_scheduling=is_async, **TIGHT) as running:
        answers = running.run(prompts, ARRIVALS)
        assert running.is_clean()
    for at, reply in enumerate(REPLIES):
        assert answers[f"r{at}"].rows == expected(reply), at
    assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0


class GuidedReference:
    """Reference that recomputes the rows of both requests of a CFG pair for every code."""

    def __init__(self, checkpoint: Path, family: Family):
        (path,) = checkpoint.glob("*.safetensors")
        tensors = load_file(path)
        self._family, self._head = family, tensors["audio_head.weight"]
        prefix = "transformer."
        stored = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        self._model = GPT2Model(GPT2Config.from_dict(config_at(checkpoint))).eval()
        self._model.load_state_dict(stored)

    @torch.inference_mode()
    def rows(self, prompt: Prompt) -> tuple[list[list[int]], float]:
        """Return the rows of a greedy guided reply, and the smallest margin of a logit over the runner-up."""
        nothing, scale, found, lead = KNOWN.nothing, prompt.sampling.guidance_scale, list[list[int]](), float("inf")
        ids = [*self._family.layout.audio[0], SOS_EOS]
        hidden = prompt.rows.copy()
        hidden[2:-1] = nothing
        while len(found) <= prompt.sampling.audio.max_rows:
            halves = [self._logits(np.concatenate([rows, self._said(found)])) for rows in (prompt.rows, hidden)]
            logits = halves[1] + scale * (halves[0] - halves[1])
            if not found:
                logits[-1] = -torch.inf  # a reply has a frame
            best, second = logits.topk(2).values.tolist()
            lead = min(lead, best - second)
            found.append([ids[int(logits.argmax())]])
            if found[-1] == [SOS_EOS]:
                return found, lead
        return [*found[:-1], [SOS_EOS]], lead

    def _said(self, found: list[list[int]]) -> np.ndarray:
        rows = np.full((len(found), KNOWN.num_codebooks), KNOWN.nothing, np.int32)
        rows[:, :1] = np.array(found).reshape(-1, 1)
        return rows

    def _logits(self, rows: np.ndarray) -> torch.Tensor:
        table = self._model.wte.weight
        embeds = table[torch.from_numpy(rows).long()].sum(1)
        return self._model(inputs_embeds=embeds[None]).last_hidden_state[0, -1] @ self._head.T
