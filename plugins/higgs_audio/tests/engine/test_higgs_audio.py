"""Higgs Audio v2 in the engine: rows equal those of transformers, however the reply ends."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vllm.v1.worker.gpu.cudagraph_utils import has_compiled_submodule

from plugins.higgs_audio.lab.random_higgs_audio import MARKERS, make_model
from plugins.higgs_audio.tests.published_higgs_audio import HiggsAudioReference, convert
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from stretto_higgs_audio.higgs_audio.prompt import audio_rows
from tests.engine.harness import Engine
from tests.tiers import ASYNC_BY_DAY

pytestmark = pytest.mark.engine
Release = tuple[Path, Family, HiggsAudioReference]
Replies = dict[str, tuple[Prompt, list[list[int]]]]
NUM_CODEBOOKS = 4
ROOMY: dict[str, Any] = {"max_model_len": 256}
# 4 of 6 replies at once, prompts in chunks, and room for hardly two of them.
TIGHT: dict[str, Any] = {
    "max_model_len": 128,
    "max_num_batched_tokens": 24,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": 8,
}
ARRIVALS = {"r1": 2, "r2": 5, "r3": 6, "r4": 11, "r5": 11}


def make_prompt(family: Family, index: int, scale: float = 1.0, **changes: object) -> Prompt:
    """Return a prompt of words that ends with the row that begins audio; every second prompt also contains audio."""
    random, layout = np.random.default_rng(index), family.layout

    def words(number: int) -> np.ndarray:
        rows = np.full((number, layout.num_input_streams), layout.pad_id, np.int32)
        rows[:, 0] = [*random.integers(5, 300, number - 1), MARKERS["<|audio_out_bos|>"]]
        return rows

    codes = random.integers(layout.codebook_size, size=(layout.num_codebooks, 2 + 7 * (index % 3)))
    heard = [audio_rows(layout, codes)] * (index % 2)
    begins = np.array([[begin for begin, _ in layout.extra]], np.int32)
    # The longest window into which no code of what was heard reaches, once its stream has begun; a longer one where
    # nothing was.
    window = 3 * NUM_CODEBOOKS if index == 4 else NUM_CODEBOOKS + 1
    sampling = replace(family.tasks[0].sampling, ras_window=window, ras_max_repeats=1)
    audio = replace(sampling.audio, **{"temperature": 0.0, "max_rows": 16 + index} | changes)
    rows = np.concatenate([words(3 + 5 * index), *heard, words(9), begins])
    return Prompt("tts", rows, replace(sampling, audio=audio, guidance_scale=scale, seed=index))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return convert(tmp_path_factory.mktemp("higgs_audio"), make_model(NUM_CODEBOOKS, num_codes=16, seed=7))


@pytest.fixture(scope="module")
def expected(release: Release) -> Replies:
    """Return unbatched replies: greedy ones from `generate`, guided and sampled ones from the plain rules."""
    _, family, reference = release
    made = {f"r{index}": make_prompt(family, index) for index in range(2)}
    made["r2"] = make_prompt(family, 2, min_rows=30, max_rows=40)
    made["r3"] = make_prompt(family, 3, 2.0)
    made["r4"] = make_prompt(family, 4, temperature=1.0, top_k=9, top_p=0.95, min_rows=30, max_rows=40)
    made["r5"] = make_prompt(family, 5, 1.5, temperature=0.8, top_k=0, min_rows=20, max_rows=30)
    replies = {}
    for name, prompt in made.items():
        rows, lead = reference.naive(prompt)
        assert lead > 1e-4, "the reference itself was nearly undecided: choose another seed"
        replies[name] = prompt, rows
    return replies


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def roomy(release: Release, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(release[0], async_scheduling=request.param, **ROOMY) as engine:
        yield engine


def said(family: Family, rows: list[list[int]]) -> list[list[int]]:
    """Return the rows of a reply, including the row that ends it."""
    return [*rows, [family.end_of_audio, *[family.layout.pad_id] * (NUM_CODEBOOKS - 1)]]


def test_reference_rules_match_generate(release: Release) -> None:
    """Replies end three and four rows after the first end token, and at the limit, in `generate` and in the engine.

    If the generation config requests it, `generate` resamples repeats even under greedy decoding.
    """
    _, family, reference = release
    end, tails, num_changed = np.array([end for _, end in family.layout.extra]), set(), 0
    for index in range(12):
        prompt = make_prompt(family, index)
        rows = reference.generated(prompt)
        assert rows == reference.naive(prompt)[0]
        freely = replace(prompt, sampling=replace(prompt.sampling, ras_window=0))
        num_changed += rows != reference.generated(freely)
        ended = np.flatnonzero((np.array(rows) == end).any(1))
        tails.add(len(rows) - ended[0] if len(ended) and len(rows) < prompt.sampling.audio.max_rows else None)
    assert tails >= {None, NUM_CODEBOOKS - 1, NUM_CODEBOOKS}
    assert num_changed


def test_batched_higgs_audio_replies_match_unbatched_ones(release: Release, expected: Replies, roomy: Engine) -> None:
    """Replies are greedy, guided or sampled, and staggered. A greedy reply equals that of `generate`."""
    answers = roomy.run({name: prompt for name, (prompt, _) in expected.items()}, ARRIVALS)
    for name, (_, rows) in expected.items():
        assert answers[name].rows == said(release[1], rows)
    assert roomy.is_clean()


@pytest.mark.nightly
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_preempted_replies_are_recomputed_exactly(release: Release, expected: Replies, is_async: bool) -> None:
    """There is little memory and prompts are chunked, with and without the compiler that traces the layers on a GPU."""
    traced = {"enforce_eager": False, "compilation_config": {"mode": 2, "backend": "eager", "cudagraph_mode": "NONE"}}
    with Engine(release[0], async_scheduling=is_async, **TIGHT, **(traced if is_async else {})) as engine:
        answers = engine.run({name: prompt for name, (prompt, _) in expected.items()}, ARRIVALS)
        assert has_compiled_submodule(engine.model_state.model) == is_async
        assert engine.is_clean()
    for name, (_, rows) in expected.items():
        assert answers[name].rows == said(release[1], rows)
    assert sum(each.trailer.num_preemptions for each in answers.values()) > 0
