"""The Qwen3-Omni talker in the engine: experts, rows with thinker states, and words added to frames."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from plugins.qwen3_omni.tests.published_qwen3_omni import TalkerReference, Theirs, cases, convert
from stretto.engine.models.multi_stream import fused_parts
from stretto.engine.worker.predictors import Readout
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling
from tests.engine.harness import Engine
from tests.engine.recorded_logits import RecordedLogits

pytestmark = pytest.mark.engine
LENGTH, NUM_FRAMES = 128, 24
# 4 of 10 replies at once, prompts in chunks, and room for hardly one of the longest.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 4, "num_gpu_blocks_override": 5}
SCHEDULES = [pytest.param(True, id="async"), pytest.param(False, id="sync", marks=pytest.mark.nightly)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tmp_path_factory.mktemp("talker"))


@pytest.fixture(scope="module", params=SCHEDULES)
def tight(checkpoint: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(checkpoint, async_scheduling=request.param, max_model_len=LENGTH, **TIGHT) as engine:
        yield engine


def test_greedy_codes_match_the_transformers_talker(
    tight: Engine,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, float], None],
) -> None:
    """Replies are batched, chunked, preempted, cached, and unbatched; logits agree to 3e-5 of the largest."""
    theirs, family = Theirs(), tight.rules.family
    starts = np.array([ids.start for ids in family.layout.audio])
    prompts = {name: case.prompt(checkpoint, NUM_FRAMES) for name, case in cases().items()}
    expected = {name: theirs.reply(case, NUM_FRAMES) for name, case in cases().items()}
    num_preemptions = 0
    for _ in range(2):
        answers = tight.run(prompts, dict.fromkeys(prompts, 0))
        num_preemptions += sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer)
        for name, answer in answers.items():
            assert np.array_equal(np.array(answer.rows[:-1]) - starts, expected[name].codes), name
            assert answer.rows[-1][0] == family.end_of_audio
    assert num_preemptions > 0
    largest, sampler = 0.0, tight.core.model_executor.driver_worker.worker.model_runner.sampler
    for name, prompt in prompts.items():
        with monkeypatch.context() as patch:
            recorded = RecordedLogits(Readout(sampler._draw.heads, sampler._draw.frames), patch)
            alone = tight.run({"one": prompt})["one"].rows
        assert alone == answers[name].rows
        case = expected[name]
        first, others = np.stack(recorded.first), np.stack(recorded.others).reshape(-1, *case.others.shape[1:])
        for ours, their in ((first, case.first), (others, case.others)):
            num_rows = min(len(ours), len(their))
            assert num_rows >= len(case.codes) > 0
            largest = max(largest, float(np.abs(ours[:num_rows] - their[:num_rows]).max() / np.abs(their).max()))
    assert tight.is_clean()
    record_property("largest_difference", largest)
    assert largest <= 3e-5  # rounding: up to 1.8e-6 with the instructions of three processors


def drawn(prompt: Prompt, index: int) -> Prompt:
    """Return the prompt with two samplers, one of which may be greedy."""
    depth = (None, CodeSampling(0.0), CodeSampling(0.8, 5), CodeSampling(1.2, 0, 0.7))[index % 4]
    audio = replace(prompt.sampling.audio, temperature=0.9, top_k=10, min_rows=8, max_rows=14 + index)
    sampling = replace(prompt.sampling, audio=audio, depth=depth, seed=index, repetition_penalty=1.2)
    return replace(prompt, sampling=sampling)


def test_sampled_replies_match_the_reference(tight: Engine, checkpoint: Path) -> None:
    """Replies are chunked and preempted.

    Different states with equal ids give different replies, also with the cache.
    """
    reference = TalkerReference(checkpoint, LENGTH)
    prompts = {}
    for index, (name, case) in enumerate(cases().items()):
        prompts[name] = drawn(case.prompt(checkpoint, NUM_FRAMES), index)
        if case.states is not None:
            other = replace(case, states=case.states[::-1].copy())
            prompts[f"{name}, reversed"] = drawn(other.prompt(checkpoint, NUM_FRAMES), index)
    answers = tight.run(prompts)
    assert tight.is_clean()
    for name, prompt in prompts.items():
        expected, lead = reference.reply(prompt)
        assert lead > 1e-5
        assert answers[name].rows == [row[: tight.rules.family.layout.num_output_streams] for row in expected], name
    assert answers["audio"].rows != answers["audio, reversed"].rows


def test_missing_moe_expert_tensors_are_detectable(tight: Engine, checkpoint: Path) -> None:
    """vLLM stores a layer's experts as one tensor, so a missing expert is detected by its parts."""
    model: Any = tight.model_state.model
    published = {name for name in load_file(next(checkpoint.glob("*.safetensors"))) if ".experts." in name}
    assert published
    assert {name for name, _ in fused_parts(model) if ".experts." in name} == published
