"""VibeVoice in the engine: frames are near a slow reference, and bit-identical unbatched, batched and preempted."""

import shutil
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
    END_OF_REPLY,
    FRAME,
    NUM_FEATURES,
    NUM_IDS,
    NUM_NUMBERS,
    OFFSET,
    SCALE,
    TOKENIZER,
    Reference,
    convert_release,
    model_of,
    solve,
    tensor,
)
from stretto.engine.frame_codes import FrameCodes
from stretto.engine.prompt_checks import Capacity, check_prompt
from stretto.engine.reply_rules import SegmentRules
from stretto.errors import InvalidRequest
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.records.prompt import Prompt
from stretto.records.sampling import LatentSampling
from stretto.streams.layout import latents_of, words_of
from stretto.testing import assert_family_conforms
from stretto.testing.conformance import Answer
from stretto_vibevoice.codec import LatentScale, TokenizerConfig
from stretto_vibevoice.vibevoice import PLUGIN
from stretto_vibevoice.vibevoice.family import VibeVoiceVocabulary, vibevoice
from tests.engine.forking import forked_processes
from tests.engine.harness import Engine
from tests.engine.nudges import assert_latents_near
from tests.engine.test_no_sync import as_on_a_gpu
from tests.tiers import by_night

pytestmark = pytest.mark.engine
SOLVER = Path(__file__).parents[1] / "data" / "vibevoice_solver.npz"
# Prompts in chunks, and memory for little more than two replies: others are preempted.
TIGHT: dict[str, Any] = {
    "max_num_batched_tokens": 24,
    "max_num_seqs": 6,
    "num_gpu_blocks_override": 7,
    "max_model_len": 128,
}
ARRIVALS = {"r1": 2, "r2": 5, "r3": 6, "r4": 11}
MAX_ROWS, LENGTH = 34, 2 + NUM_NUMBERS + NUM_FEATURES
VOCABULARY_OF_RELEASES = VibeVoiceVocabulary(
    NUM_IDS, BEGIN, END, FRAME, END_OF_REPLY, NUM_NUMBERS, NUM_FEATURES, max_model_len=512
).to_record()


def make_prompt(family: Family, index: int) -> Prompt:
    """Return a prompt, which contains a voice if `index` is odd; lengths, steps and scales depend on index."""
    random = np.random.default_rng(index)
    rows = np.zeros((9 + 7 * index, LENGTH), np.int32)
    rows[:, 0] = random.integers(0, 250, len(rows))
    rows[-1, 0] = BEGIN
    if index % 2:
        rows[2:5, 0] = NUM_IDS
        rows[2:5, 1 : 1 + NUM_NUMBERS] = words_of(random.standard_normal((3, NUM_NUMBERS)))
    sampling = family.tasks[0].sampling
    return Prompt(
        "tts",
        rows,
        replace(
            sampling,
            audio=replace(sampling.audio, max_rows=MAX_ROWS - index),
            latents=LatentSampling(2 + index % 3 * 3),
            guidance_scale=(1.5, 2.0, 1.0)[index % 3],
            seed=index,
        ),
    )


def rows_of(answers: Mapping[str, Answer]) -> dict[str, list[list[int]]]:
    return {name: answer.rows for name, answer in answers.items()}


def num_preemptions(answers: Mapping[str, Answer]) -> int:
    return sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer)


def spread_of(nudged: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the largest difference in each row, or infinity for rows after a different id."""
    number = min(len(nudged), len(expected))
    found = np.full(len(expected), np.inf)
    found[:number] = np.abs(nudged[:number] - expected[:number]).max(1)
    return found


@pytest.fixture(scope="module", params=["long", *by_night("wide")])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, kind: str) -> Path:
    return convert_release(tmp_path_factory.mktemp("vibevoice"), kind)


@pytest.fixture(scope="module")
def prompts(checkpoint: Path) -> dict[str, Prompt]:
    return {f"r{index}": make_prompt(family_at(checkpoint), index) for index in range(5)}


@pytest.fixture(scope="module")
def alone(checkpoint: Path, prompts: dict[str, Prompt]) -> dict[str, Answer]:
    """Return the replies, generated one after another."""
    with Engine(checkpoint, max_model_len=256) as engine:
        return {name: engine.run({name: prompt})[name] for name, prompt in prompts.items()}


# Guided with a voice, and neither; by night also guided without a voice.
@pytest.mark.parametrize("names", [("r1", "r2"), *by_night((("r0",),), ids=["r0"])], ids="+".join)
def test_vibevoice_frames_match_the_reference(
    kind: str, names: tuple[str, ...], prompts: dict[str, Prompt], alone: dict[str, Answer]
) -> None:
    """Ids are equal; latents and features agree within a nudge's effect. Stretches start afresh in both."""
    model, starts = model_of(kind), 0
    for name in names if kind == "long" else ("r1",):
        prompt, rows = prompts[name], np.array(alone[name].rows, np.int64)
        sampling = prompt.sampling
        assert sampling.seed is not None
        assert sampling.latents is not None
        given = prompt.rows, sampling.seed, sampling.guidance_scale, sampling.latents.steps, sampling.audio.max_rows
        ids, latents, features, lead = Reference(model).reply(*given)
        assert lead > 1e-4, name
        assert rows[:, 0].tolist() == ids, name
        starts += sum(ids[index : index + 2] == [BEGIN, FRAME] for index in range(len(ids)))
        nudged = [
            Reference(model, 1e-6 * torch.randn(NUM_NUMBERS, generator=torch.Generator().manual_seed(seed))).reply(
                *given
            )
            for seed in range(2)
        ]
        is_frame = rows[:, 0] == FRAME
        found = latents_of(rows[is_frame, 1:].astype(np.int32))
        own = found[:, :NUM_NUMBERS], found[:, NUM_NUMBERS + 1 :]
        for index, expected in enumerate((latents, features)):
            spread = np.max([spread_of(each[1 + index], expected) for each in nudged], 0)
            assert_latents_near(own[index], expected, spread)
        begins = np.array([before == BEGIN for before in [BEGIN, *ids[:-1]]])
        assert found[:, NUM_NUMBERS].tolist() == begins[is_frame].tolist()
        assert not rows[~is_frame, 1:].any()
    assert starts > 1 or kind != "long" or names == ("r0",), "several stretches of audio are compared"


@pytest.mark.parametrize(
    "options", [{}, *by_night({"enable_prefix_caching": False}, {"async_scheduling": True})], ids=str
)
def test_latent_replies_are_bit_identical_in_any_batch(
    checkpoint: Path, prompts: dict[str, Prompt], alone: dict[str, Answer], options: dict[str, Any]
) -> None:
    """The memory of the decoded audio is saved for preempted replies, or recomputed."""
    with Engine(checkpoint, **TIGHT, **options) as engine:
        memory = engine.model_state.memory
        answers = engine.run(prompts, ARRIVALS)
        assert rows_of(answers) == rows_of(alone)
        assert num_preemptions(answers) > 0
        assert memory.num_restored > 0
        memory._max_aside = 0
        rebuilt = memory.num_rebuilt
        answers = engine.run(prompts)
        assert rows_of(answers) == rows_of(alone)
        assert num_preemptions(answers) > 0
        assert memory.num_rebuilt > rebuilt or options, "with other options, replies may be preempted between stretches"
        assert engine.is_clean()


@pytest.mark.nightly  # by day, test_step_program.py and test_latents.py
def test_gpu_kernels_give_the_same_replies(
    checkpoint: Path, prompts: dict[str, Prompt], alone: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels run in Triton's interpreter; conditional and unconditional requests are at different positions."""
    as_on_a_gpu(monkeypatch)
    with Engine(checkpoint, **TIGHT) as engine:
        memory = engine.model_state.memory
        answers = engine.run(prompts, ARRIVALS)
        assert rows_of(answers) == rows_of(alone)
        assert num_preemptions(answers) > 0
        assert memory.num_restored > 0


@pytest.mark.nightly
def test_untied_head_weights_are_used(tmp_path: Path) -> None:
    checkpoint, model = convert_release(tmp_path, "untied"), model_of("untied")
    prompt = make_prompt(family_at(checkpoint), 1)
    with Engine(checkpoint, max_model_len=256) as engine:
        rows = engine.run({"r1": prompt})["r1"].rows
    assert prompt.sampling.latents is not None
    sampling = prompt.sampling
    ids, *_ = Reference(model).reply(prompt.rows, 1, sampling.guidance_scale, 5, sampling.audio.max_rows)
    assert [row[0] for row in rows] == ids


@pytest.mark.nightly
def test_family_conforms(tmp_path: Path) -> None:
    def write(folder: Path, family: Family, name: str, vocabulary: Mapping[str, Any]) -> Path:
        shutil.copytree(convert_release(tmp_path, "long"), folder)
        assert vocabulary == config_at(folder)[VOCABULARY]
        return folder

    assert_family_conforms(PLUGIN, tmp_path / "conforming", VOCABULARY_OF_RELEASES, write, num_prompts=20)


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
    family = vibevoice(VibeVoiceVocabulary.from_record(VOCABULARY_OF_RELEASES))
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
    family = vibevoice(VibeVoiceVocabulary.from_record(VOCABULARY_OF_RELEASES))
    rules, capacity = SegmentRules(family, 512), Capacity(num_blocks=100, block_size=32, max_num_seqs=4)
    prompt = make_prompt(family, 1)
    asked = replace(prompt, sampling=replace(prompt.sampling, **change))
    if not message:
        assert check_prompt(asked, rules, capacity).rows is asked.rows
        return
    with pytest.raises(InvalidRequest, match=message):
        check_prompt(asked, rules, capacity)


def test_prompts_must_end_with_the_audio_begin_marker() -> None:
    family = vibevoice(VibeVoiceVocabulary.from_record(VOCABULARY_OF_RELEASES))
    rules, capacity = SegmentRules(family, 512), Capacity(num_blocks=100, block_size=32, max_num_seqs=4)
    prompt = make_prompt(family, 1)
    with pytest.raises(InvalidRequest, match=f"rows: expected {BEGIN}, which begins audio, as the last id"):
        check_prompt(replace(prompt, rows=prompt.rows[:-1]), rules, capacity)
    sampling = replace(prompt.sampling, audio=replace(prompt.sampling.audio, temperature=0.5))
    with pytest.raises(InvalidRequest, match=r"options.audio.temperature: expected 1.0"):
        check_prompt(replace(prompt, sampling=sampling), rules, capacity)


@pytest.mark.nightly
def test_two_ranks_are_close_to_the_slow_reference(tmp_path: Path) -> None:
    """Sums over ranks differ in the last bits from those of a single rank, but are bit-identical in every batch."""
    checkpoint = convert_release(tmp_path, "long")
    prompts = {f"r{index}": make_prompt(family_at(checkpoint), index) for index in range(3)}
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
