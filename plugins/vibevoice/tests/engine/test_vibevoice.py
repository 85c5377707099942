"""VibeVoice's parts in the engine: memory of preempted replies, solver, feedback, and what a prompt may ask for."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.vibevoice.tests.vibevoice_release import (
    BEGIN,
    END,
    FRAME,
    LENGTH,
    NUM_FEATURES,
    NUM_NUMBERS,
    OFFSET,
    SCALE,
    TIGHT,
    TOKENIZER,
    VOCABULARY,
    Reference,
    convert_release,
    make_prompt,
    model_of,
    solve,
    tensor,
)
from stretto.engine.frame_codes import FrameCodes
from stretto.engine.prompt_checks import Capacity, check_prompt
from stretto.engine.reply_rules import SegmentRules
from stretto.errors import InvalidRequest
from stretto.records.sampling import LatentSampling
from stretto.streams.layout import latents_of, words_of
from stretto.testing.conformance import Answer
from stretto_vibevoice.codec import LatentScale, TokenizerConfig
from stretto_vibevoice.vibevoice.family import vibevoice
from tests.engine.forking import forked_processes
from tests.engine.harness import Engine

pytestmark = pytest.mark.engine
SOLVER = Path(__file__).parents[1] / "data" / "vibevoice_solver.npz"
ARRIVALS = {"r1": 2, "r2": 5, "r3": 6, "r4": 11}


def rows_of(answers: Mapping[str, Answer]) -> dict[str, list[list[int]]]:
    return {name: answer.rows for name, answer in answers.items()}


def num_preemptions(answers: Mapping[str, Answer]) -> int:
    return sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer)


def test_memory_of_preempted_replies_is_restored_or_recomputed(tmp_path: Path) -> None:
    checkpoint = convert_release(tmp_path, "long")
    prompts = {f"r{index}": make_prompt(index) for index in range(5)}
    with Engine(checkpoint, **TIGHT) as engine:
        alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        memory = engine.model_state.memory
        answers = engine.run(prompts, ARRIVALS)
        assert rows_of(answers) == alone
        assert num_preemptions(answers) > 0
        assert memory.num_restored > 0
        memory._max_aside = 0
        rebuilt = memory.num_rebuilt
        answers = engine.run(prompts)
        assert rows_of(answers) == alone
        assert num_preemptions(answers) > 0
        assert memory.num_rebuilt > rebuilt
        assert engine.is_clean()


def test_diffusion_solver_matches_the_authors() -> None:
    """Expected values come from diffusers' DPMSolverMultistepScheduler (0.42.1) for a velocity in closed form."""
    from stretto.engine.worker.batch_plan import SolverPlan
    from stretto_vibevoice.vibevoice.model import DiffusionHead, cosine_schedule

    stored = np.load(SOLVER)
    noise = torch.from_numpy(stored["noise"])

    class Given(DiffusionHead):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.cond_proj = torch.nn.Linear(1, 1)
            torch.nn.init.zeros_(self.cond_proj.weight)
            torch.nn.init.zeros_(self.cond_proj.bias)
            self.timestep_proj = torch.nn.Unflatten(0, (-1, 1))

        def _velocity(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            return torch.tanh(1.5 * x.roll(1, 1) - 0.5 * x + condition / 1000)

    head, numbers = Given().requires_grad_(False).prepare(range(2, 51)), (2, 5, 10, 20)
    states, plan = torch.zeros(len(noise), 1), SolverPlan(max(numbers), is_guided=False)
    for number in numbers:
        assert cosine_schedule(number)[0].tolist() == stored[f"times{number}"].tolist()
        expected = torch.from_numpy(stored[f"steps{number}"])
        steps = torch.full((len(noise),), number)
        found = head(states, noise, steps, plan, states, torch.ones(len(noise)))
        assert (found - expected).abs().max() < 1e-5, number
        velocity = lambda x, time: torch.tanh(1.5 * x.roll(1, 1) - 0.5 * x + time / 1000)  # noqa: E731
        assert (solve(velocity, noise, number) - expected).abs().max() < 1e-5, number


def test_recomputed_feedback_state_is_bit_identical() -> None:
    """It is computed from as many latents as the networks depend on."""
    from stretto_vibevoice.vibevoice.model import Feedback  # needs vLLM

    acoustic = TokenizerConfig.from_record(TOKENIZER)
    network = Feedback(acoustic, replace(acoustic, size=NUM_FEATURES), LatentScale(SCALE, OFFSET)).requires_grad_(False)
    for name, parameter in network.named_parameters():
        parameter.copy_(tensor(name, parameter.shape))
    assert network.reach == 40
    latents = torch.randn(50, 1, NUM_NUMBERS, generator=torch.Generator().manual_seed(0))
    whole = part = late = torch.zeros(1, network.num_kept)
    for index, latent in enumerate(latents):
        features, whole = network(latent, whole)
        if index >= len(latents) - 1 - network.reach:
            _, part = network(latent, part)
        if index >= len(latents) - network.reach // 2:
            _, late = network(latent, late)
    assert part.equal(whole)
    assert not late.equal(whole)
    assert features.abs().max() > 0.01


def test_begin_and_end_markers_are_not_codec_frames() -> None:
    family = vibevoice(VOCABULARY)
    rows = np.zeros((7, LENGTH), np.int64)
    rows[:, 0] = [FRAME, FRAME, END, BEGIN, FRAME, END, BEGIN]
    rows[rows[:, 0] == FRAME, 1] = words_of(np.array([1.0, 2.0, 3.0]))
    frames = FrameCodes(family, family.layout.codebook_streams)
    frames.push(rows[:3])
    frames.push(rows[3:])
    first, second, none = frames.pop_frames(1), frames.pop_frames(4), frames.pop_frames(2)
    assert first is not None
    assert second is not None
    assert none is None
    assert first.shape == (NUM_NUMBERS + 1, 1)
    assert latents_of(np.concatenate([first, second], 1))[0].tolist() == [1.0, 2.0, 3.0]
    assert [frames.kept_index(index) for index in (0, 1, 4, 6)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, ""),
        ({"policy": "adaptive"}, "options.guidance.policy: expected 'always'"),
        ({"latents": LatentSampling(51)}, r"options.latents.steps: expected an integer in \[2, 50\], got 51"),
        (
            {"latents": LatentSampling(5, guidance_scale=2.0)},
            "options.guidance_scale: expected 1.0, because vibevoice has no",
        ),
    ],
)
def test_unsupported_vibevoice_options_are_refused(change: dict[str, Any], message: str) -> None:
    family = vibevoice(VOCABULARY)
    rules, capacity = SegmentRules(family, 512), Capacity(num_blocks=100, block_size=32, max_num_seqs=4)
    prompt = make_prompt(1)
    asked = replace(prompt, sampling=replace(prompt.sampling, **change))
    if not message:
        assert check_prompt(asked, rules, capacity).rows is asked.rows
        return
    with pytest.raises(InvalidRequest, match=message):
        check_prompt(asked, rules, capacity)


def test_prompts_must_end_with_the_audio_begin_marker() -> None:
    family = vibevoice(VOCABULARY)
    rules, capacity = SegmentRules(family, 512), Capacity(num_blocks=100, block_size=32, max_num_seqs=4)
    prompt = make_prompt(1)
    with pytest.raises(InvalidRequest, match=f"rows: expected {BEGIN}, which begins audio, as the last id"):
        check_prompt(replace(prompt, rows=prompt.rows[:-1]), rules, capacity)
    sampling = replace(prompt.sampling, audio=replace(prompt.sampling.audio, temperature=0.5))
    with pytest.raises(InvalidRequest, match=r"options.audio.temperature: expected 1.0"):
        check_prompt(replace(prompt, sampling=sampling), rules, capacity)


@pytest.mark.nightly
def test_two_ranks_are_close_to_the_slow_reference(tmp_path: Path) -> None:
    """Sums over ranks differ in the last bits from those of a single rank, but are bit-identical in every batch."""
    checkpoint = convert_release(tmp_path, "long")
    prompts = {f"r{index}": make_prompt(index) for index in range(3)}
    with forked_processes():
        engine = Engine(checkpoint, max_model_len=128, tensor_parallel_size=2)
    with engine:
        together = engine.run(prompts)
        for name, prompt in prompts.items():
            assert together[name].rows == engine.run({name: prompt})[name].rows
    sampling = prompts["r2"].sampling
    assert sampling.latents is not None
    steps, scale, limit = sampling.latents.steps, sampling.guidance_scale, sampling.audio.max_rows
    ids, latents, *_ = Reference(model_of("long")).reply(prompts["r2"].rows, 2, scale, steps, limit)
    rows = np.array(together["r2"].rows, np.int64)
    assert rows[:, 0].tolist() == ids
    found = latents_of(rows[rows[:, 0] == FRAME, 1 : 1 + NUM_NUMBERS].astype(np.int32))
    np.testing.assert_allclose(found, latents, atol=1e-2)
