"""Latent frames are bit-identical in every batch and near a plain computation; a countdown ends them."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from stretto.config import EngineConfig
from stretto.engine.llm import SpeechLLM
from stretto.engine.prompt_checks import Capacity, check_prompt
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.sampling.noise import gaussian, seed_key, stream_keys
from stretto.engine.worker.latent_draw import LatentStepProgram
from stretto.errors import InvalidRequest, StrettoError
from stretto.records.prompt import Prompt
from stretto.records.sampling import LatentSampling
from stretto.streams.layout import latents_of, words_of
from stretto.testing.conformance import Answer
from tests.engine.forking import forked_processes
from tests.engine.harness import DEFAULTS, Engine
from tests.engine.test_no_sync import as_on_a_gpu
from tests.latent_model import NUM_WORDS, FlowHead, reference_latent, write
from tests.speech_families import GUIDED_LATENTS, LATENTS
from tests.tiers import by_night

pytestmark = pytest.mark.engine
FRAME, LAST = LATENTS.layout.audio[0]
# Prompts in chunks, and memory for little more than two replies: others are preempted.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 4, "num_gpu_blocks_override": 6}
ARRIVALS = {"r1": 2, "r2": 5, "r3": 6, "r4": 11}
# Hidden width and layers. At the greater width, oneDNN adds up one row in another order than two.
SIZES = [pytest.param((64, 3), id="narrow"), *by_night(((2048, 1),), ids=["wide"])]


def make_prompt(index: int, **latents: float) -> Prompt:
    """Return a prompt that contains frames, as for a cloned voice; lengths, steps and temperatures depend on index."""
    random = np.random.default_rng(index)
    rows = np.zeros((9 + 7 * index, 1 + NUM_WORDS), np.int32)
    rows[:, 0] = random.integers(16, 47, len(rows))
    rows[2:6, 0], rows[2:6, 1:] = FRAME, words_of(random.standard_normal((4, NUM_WORDS)))
    sampling = LATENTS.tasks[0].sampling
    audio = replace(sampling.audio, temperature=(0.5, 0.0, 1.0)[index % 3])
    values: dict[str, Any] = {"steps": 1 + index % 4, "tail_rows": 3 + 2 * (index % 2)} | latents
    given = LatentSampling(**values)
    return Prompt("speak", rows, replace(sampling, audio=audio, latents=given, seed=index))


def with_audio(prompt: Prompt, **limits: Any) -> Prompt:
    sampling = prompt.sampling
    return replace(prompt, sampling=replace(sampling, audio=replace(sampling.audio, **limits)))


PROMPTS = {f"r{index}": make_prompt(index) for index in range(5)}
# Permitted rounding error of a latent, whose level is about 1. Other instructions change it by up to 1.3e-5.
NEAR = 3e-4


def rows_of(answers: Mapping[str, Answer]) -> dict[str, list[list[int]]]:
    return {name: answer.rows for name, answer in answers.items()}


@pytest.fixture(scope="module", params=SIZES)
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    hidden, layers = request.param
    return write(tmp_path_factory.mktemp("latents"), hidden, layers)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Answer]:
    """Return the replies, generated one after another."""
    with Engine(folder, max_model_len=256) as engine:
        return {name: engine.run({name: prompt})[name] for name, prompt in PROMPTS.items()}


def test_latent_replies_end_after_a_detected_end(alone: dict[str, Answer]) -> None:
    """Every frame before the last row has a latent; the end is detected at one of the frames."""
    ends = set()
    for name, answer in alone.items():
        rows, tail = np.array(answer.rows), PROMPTS[name].sampling.latents
        assert tail is not None
        (end,) = np.flatnonzero(rows[:, 0] == LAST)
        assert set(rows[:end, 0]) == {FRAME}
        assert rows[end + tail.tail_rows :, 0].tolist() == [LATENTS.end_of_reply]
        assert end >= 20, "frames before the minimum length do not end a reply"
        assert rows[:-1, 1:].any(1).all()
        assert not rows[-1, 1:].any()
        assert answer.trailer is not None
        assert not answer.trailer.was_cut
        ends.add(int(end))
    assert len(ends) > 2


@pytest.mark.parametrize(
    "options", [{"async_scheduling": True}, *by_night({}, {"enable_prefix_caching": False})], ids=str
)
def test_latent_replies_are_bit_identical_in_any_batch(
    folder: Path, alone: dict[str, Answer], options: dict[str, Any]
) -> None:
    with Engine(folder, max_model_len=128, **TIGHT, **options) as engine:
        for arrivals in (ARRIVALS, {}):  # the second time, prompts may come from the prefix cache
            answers = engine.run(PROMPTS, arrivals)
            assert rows_of(answers) == rows_of(alone)
            assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0
        assert engine.is_clean()


def test_gpu_kernels_give_the_same_replies(
    folder: Path, alone: dict[str, Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels run in Triton's interpreter, with asynchronous scheduling and preemption, and few rows a reply."""
    as_on_a_gpu(monkeypatch)
    some = {name: with_audio(PROMPTS[name], min_rows=12, max_rows=14) for name in ("r2", "r3", "r4")}
    with Engine(folder, max_model_len=128, **TIGHT, async_scheduling=True) as engine:
        assert isinstance(engine.model_state._step_sampler._program, LatentStepProgram)
        answers = engine.run(some, {"r3": 1, "r4": 2})
    for name, answer in answers.items():
        assert len(answer.rows) > 5
        latents = [row[1:] for row in answer.rows[:-1]]
        assert latents == [row[1:] for row in alone[name].rows[: len(latents)]]
    assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0


def test_latents_match_a_reference_computation(folder: Path, alone: dict[str, Answer]) -> None:
    weights = load_file(folder / "model.safetensors")
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name in ("r0", "r3"):
        prompt, rows = PROMPTS[name], np.array(alone[name].rows[:-1], np.int32)
        latents, sampling = latents_of(rows[:, 1:]), prompt.sampling
        assert sampling.latents is not None
        embeds = embedded(weights, np.concatenate([prompt.rows, rows]))
        with torch.inference_mode():
            hidden = network.model(inputs_embeds=embeds[None]).last_hidden_state[0, len(prompt.rows) - 1 : -1]
        positions = np.arange(len(prompt.rows), len(prompt.rows) + len(rows), dtype=np.int32)
        seeds = np.full(len(rows), seed_key(int(name[1:])), np.int32)
        noise = gaussian(stream_keys(seeds, positions, 1 + NUM_WORDS)[:, 1:])
        noise = torch.from_numpy(noise) * sampling.audio.temperature**0.5
        expected = [
            reference_latent(weights, *each, sampling.latents.steps) for each in zip(hidden, noise, strict=True)
        ]
        difference = np.abs(torch.stack(expected).numpy() - latents).max()
        assert difference < NEAR, name
        logits = hidden @ weights["end_of_speech.weight"] + weights["end_of_speech.bias"]
        end = int(np.flatnonzero(rows[:, 0] == LAST)[0])
        assert logits[end] > 1e-4
        assert (-logits[sampling.audio.min_rows : end]).min() > 1e-4


def guided_prompt(index: int) -> Prompt:
    prompt = make_prompt(index, guidance_scale=(2.0, 1.0, 0.0)[index % 3])
    return with_audio(prompt, temperature=1.0)


def embedded(weights: dict[str, torch.Tensor], rows: np.ndarray) -> torch.Tensor:
    """Return the embeddings [N, H] of rows [N, 1 + D]."""
    embeds = weights["model.embed_tokens.weight"][torch.from_numpy(rows[:, 0]).long()].clone()
    is_frame = torch.from_numpy((rows[:, 0] == FRAME) | (rows[:, 0] == LAST))
    embeds[is_frame] = torch.from_numpy(latents_of(rows[:, 1:]))[is_frame] @ weights["connector.weight"].T
    return embeds


def test_latent_tails_and_row_limits(folder: Path, alone: dict[str, Answer]) -> None:
    """The tail is counted from the end frame. The limit also applies within the tail, and 0 rows drop that frame."""
    expected = alone["r1"].rows
    end = [row[0] for row in expected].index(LAST)
    own = make_prompt(1).sampling.latents
    assert own is not None
    prompts = {f"tail {rows}": make_prompt(1, tail_rows=rows) for rows in (0, 1, 9)}
    prompts["limit"] = with_audio(make_prompt(1, tail_rows=9), max_rows=end + 2)
    shorter = alone["r3"].rows
    earlier = [row[0] for row in shorter].index(LAST)
    prompts["longer"] = with_audio(make_prompt(3), min_rows=earlier + 1)
    with Engine(folder, max_model_len=256) as engine:
        answers = engine.run(prompts)
    for rows in (0, 1, 9):
        found = answers[f"tail {rows}"].rows
        assert len(found) == end + rows + 1
        same = min(rows, own.tail_rows) + end
        assert found[:same] == expected[:same]
    limit = answers["limit"]
    assert [row[0] for row in limit.rows[end:]] == [LAST, FRAME, LATENTS.end_of_reply]
    assert limit.trailer is not None
    assert limit.trailer.was_cut
    assert answers["longer"].rows[:earlier] == shorter[:earlier]
    assert [row[0] for row in answers["longer"].rows].index(LAST) > earlier


def test_non_finite_latent_fails_only_its_own_reply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other replies are unchanged, both at the same time and afterwards in the KV blocks that it used."""
    forward = FlowHead.forward

    def overflow(self: FlowHead, hidden: torch.Tensor, *given: Any) -> torch.Tensor:
        is_large = (given[1] == 4)[:, None]  # solver steps of the failing requests alone
        return torch.where(is_large, torch.nan, forward(self, hidden, *given))

    monkeypatch.setattr(FlowHead, "forward", overflow)
    folder = write(tmp_path, 64, 2)

    async def frames(llm: SpeechLLM, prompt: Prompt) -> list[Any]:
        codes = [chunk.codes async for chunk in llm.generate(prompt)]
        return np.concatenate([each for each in codes if each is not None], 1).tolist()

    async def run() -> tuple[list[Any], list[Any], list[Any]]:
        with forked_processes():
            arguments = {**DEFAULTS, "max_num_seqs": 4, "num_gpu_blocks_override": 8, "max_model_len": 128}
            llm = await SpeechLLM.start(EngineConfig(folder, arguments))

        async def fail(index: int) -> None:
            with pytest.raises(StrettoError, match="expected finite latents, got NaN or infinity"):
                await frames(llm, make_prompt(index))

        try:
            alone = await frames(llm, make_prompt(1))
            beside, *_ = await asyncio.gather(frames(llm, make_prompt(1)), fail(3), fail(7))
            return alone, beside, await frames(llm, make_prompt(1))
        finally:
            llm.shutdown()

    alone, beside, after = asyncio.run(run())
    assert alone == beside == after


RULES = SegmentRules(LATENTS, 256)
ROOMY = Capacity(num_blocks=100, block_size=32, max_num_seqs=4)


def changed(prompt: Prompt, row: int, words: np.ndarray) -> Prompt:
    rows = prompt.rows.copy()
    rows[row, 1:] = words
    return replace(prompt, rows=rows)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            changed(make_prompt(0), 0, words_of(np.ones(NUM_WORDS))),
            "rows: expected 0 in streams 1 and up of rows without a latent",
        ),
        (changed(make_prompt(0), 3, words_of(np.full(NUM_WORDS, np.nan))), "rows: expected finite latents"),
        (changed(make_prompt(0), 3, words_of(np.full(NUM_WORDS, -np.inf))), "rows: expected finite latents"),
        (make_prompt(0, steps=5), r"options\.latents\.steps: expected an integer in \[1, 4\], got 5"),
        (with_audio(make_prompt(0), top_k=3), r"options\.audio\.top_k: expected 0 \(frames of latents have no ids"),
        (with_audio(make_prompt(0), top_p=0.5), r"options\.audio\.top_p: expected 1\.0"),
        (replace(make_prompt(0), sampling=replace(make_prompt(0).sampling, min_p=0.1)), r"min_p: expected 0\.0"),
        (replace(make_prompt(0), sampling=replace(make_prompt(0).sampling, ras_window=3)), "ras_window: expected 0"),
        (
            replace(make_prompt(0), sampling=replace(make_prompt(0).sampling, guidance_scale=2.0)),
            r"guidance_scale: expected 1\.0, because latents has no guidance",
        ),
        (
            make_prompt(0, guidance_scale=2.0),
            r"guidance_scale: expected 1\.0, because latents has no guidance, got 2\.0",
        ),
        (replace(make_prompt(0), num_reference_rows=1), r"rows: expected codes of stream 0 in .* in the rows of a ref"),
    ],
)
def test_invalid_latent_prompts_are_refused(prompt: Prompt, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        check_prompt(prompt, RULES, ROOMY)


def test_guided_latent_head_refuses_temperature_and_guidance_scale() -> None:
    rules = SegmentRules(GUIDED_LATENTS, 256)
    assert check_prompt(guided_prompt(0), rules, ROOMY).sampling == guided_prompt(0).sampling
    with pytest.raises(InvalidRequest, match=r"options\.audio\.temperature: expected 1\.0"):
        check_prompt(make_prompt(0), rules, ROOMY)
    pair = replace(guided_prompt(0), sampling=replace(guided_prompt(0).sampling, guidance_scale=2.0))
    with pytest.raises(InvalidRequest, match=r"guidance_scale: expected 1\.0, because guided_latents has no guidance"):
        check_prompt(pair, rules, ROOMY)


def test_latents_of_every_finite_number_are_admitted() -> None:
    words = words_of(np.array([-0.0, 1e-45, -1e-40, 3e38, -3e38, 1.0, -1.0, 0.0]))
    assert check_prompt(changed(make_prompt(0), 3, words), RULES, ROOMY).rows[3, 1:].tolist() == words.tolist()
