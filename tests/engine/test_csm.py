"""CSM in the engine: frames that the depth transformer completes equal those of transformers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stretto.cpu_backend import depth as cpu_depth
from stretto.cpu_backend.depth import CpuDepth
from stretto.family.base import Family
from stretto.records.prompt import Prompt
from tests.engine.harness import Engine
from tests.engine.plain_depth import PlainDepth
from tests.published_csm import (
    BEGIN,
    CODEBOOK_SIZE,
    END,
    END_OF_AUDIO,
    NUM_CODEBOOKS,
    NUM_TEXT_IDS,
    CsmReference,
    convert,
    make_model,
    swap_codes,
)
from tests.tiers import ASYNC_BY_DAY, SYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine
Release = tuple[Path, Family, CsmReference]
ROOMY: dict[str, Any] = {"max_model_len": 256}
# 4 of 5 replies at once, prompts in chunks, and room for hardly two of them.
TIGHT: dict[str, Any] = {
    "max_model_len": 128,
    "max_num_batched_tokens": 24,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": 8,
}
ARRIVALS = {"r0": 0, "r1": 2, "r2": 5, "r3": 6, "r4": 11}


def make_prompt(family: Family, index: int, scale: float = 1.0, **changes: object) -> Prompt:
    """Return a prompt with the words of two turns, and the first turn's frames between them."""
    random = np.random.default_rng(index)
    num_words, num_frames = 3 + 5 * index, 2 + 7 * (index % 3)
    words = np.full((num_words, NUM_CODEBOOKS), family.layout.pad_id, np.int32)
    words[:, 0] = [BEGIN, *random.integers(5, NUM_TEXT_IDS - 8, num_words - 2), END]
    starts = np.array([ids.start for ids in family.layout.audio])
    frames = starts + random.integers(CODEBOOK_SIZE, size=(num_frames, NUM_CODEBOOKS))
    sampling = family.tasks[0].sampling
    audio = replace(sampling.audio, **{"temperature": 0.0, "max_rows": 14 + index} | changes)
    rows = np.concatenate([words, frames, words]).astype(np.int32)
    return Prompt("speak", rows, replace(sampling, audio=audio, guidance_scale=scale, seed=index))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return convert(tmp_path_factory.mktemp("csm"), make_model())


@pytest.fixture(scope="module")
def expected(release: Release) -> dict[str, tuple[Prompt, list[list[int]]]]:
    """Return five unbatched replies, three of them guided."""
    _, family, reference = release
    made = {}
    for index, scale in enumerate((1.0, 2.0, 1.0, 3.0, 2.0)):
        prompt = make_prompt(family, index, scale)
        made[f"r{index}"] = prompt, (reference.generated(prompt) if scale == 1.0 else reference.guided(prompt))
    return made


@pytest.fixture(scope="module", params=ASYNC_BY_DAY)
def roomy(release: Release, request: pytest.FixtureRequest) -> Iterator[Engine]:
    with Engine(release[0], async_scheduling=request.param, **ROOMY) as engine:
        yield engine


@pytest.mark.parametrize("settings", [pytest.param(TIGHT, id="tight"), *by_night(ROOMY, ids=["roomy"])])
@pytest.mark.parametrize("is_async", SYNC_BY_DAY)
def test_csm_replies_match_generate_with_and_without_guidance(
    release: Release, expected: dict[str, tuple[Prompt, list[list[int]]]], settings: dict[str, Any], is_async: bool
) -> None:
    """Replies run batched and staggered, and with little memory also chunked and preempted."""
    with Engine(release[0], async_scheduling=is_async, **settings) as engine:
        answers = engine.run({name: prompt for name, (prompt, _) in expected.items()}, ARRIVALS)
        assert engine.is_clean()
    for name, (_, frames) in expected.items():
        assert answers[name].rows == [*frames, [END_OF_AUDIO, *[release[1].layout.pad_id] * (NUM_CODEBOOKS - 1)]]
    assert (sum(each.trailer.num_preemptions for each in answers.values()) > 0) == (settings is TIGHT)


def test_sampled_csm_frames_are_batch_and_cache_invariant(roomy: Engine) -> None:
    """Some replies resample repeats and some are guided. An aborted reply leaves nothing behind."""
    family = roomy.rules.family
    prompts = {}
    for index, scale in enumerate((1.0, 2.5, 1.0, 1.5)):
        prompt = make_prompt(family, index, scale, temperature=0.9, top_k=10, top_p=0.95)
        sampling = replace(prompt.sampling, ras_window=6 * (index % 2), ras_max_repeats=1)
        prompts[f"r{index}"] = replace(prompt, sampling=sampling)
    together = roomy.run(prompts, aborts={"r2": 9})
    assert len(together["r2"].rows) < 12
    for name in ("r0", "r1", "r3"):
        assert roomy.run({name: prompts[name]})[name].rows == together[name].rows
    other = replace(prompts["r0"], sampling=replace(prompts["r0"].sampling, seed=77))
    assert roomy.run({"other": other})["other"].rows != together["r0"].rows
    assert roomy.is_clean()


@torch.inference_mode()
@pytest.mark.parametrize("is_wide", [False, True], ids=["narrow", "wide"])
def test_cpu_depth_matches_modules_and_is_batch_invariant(
    roomy: Engine, is_wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch changes from frame to frame. 17 rows are padded to 18, and a single row to two if layers are wide."""
    if is_wide:
        monkeypatch.setattr(cpu_depth, "narrow_width", lambda: 1)
    modules = roomy.model_state.model.get_submodule("depth")
    plain, host, alone = PlainDepth(modules), CpuDepth(modules), CpuDepth(modules)
    for each in (plain, host, alone):
        each.prepare(17)
    for num_rows in (3, 17, 3, 1):
        hidden = torch.randn(num_rows, modules.first_head.shape[1])
        codes = torch.randint(CODEBOOK_SIZE, (num_rows, NUM_CODEBOOKS))
        runs = (plain, num_rows), (host, num_rows), (alone, 1)
        read = [each.begin(hidden[:rows], codes[:rows, 0]) for each, rows in runs]
        for position in range(1, NUM_CODEBOOKS):
            if position > 1:
                code = codes[:, position - 1] + (position - 1) * CODEBOOK_SIZE
                read = [each.next(code[:rows], position) for each, rows in runs]
            torch.testing.assert_close(read[1], read[0])
            assert torch.equal(read[2], read[1][:1])


def ended(folder: Path, num_end_codebooks: int, *prompts: Prompt) -> list[list[list[int]]]:
    """Return the frames of replies that end at zeros in this number of codebooks."""
    config = json.loads((folder / "config.json").read_text())
    config["speech_vocabulary"]["num_end_codebooks"] = num_end_codebooks
    (folder / "config.json").write_text(json.dumps(config))
    with Engine(folder, **ROOMY) as engine:
        return [engine.run({"one": prompt})["one"].rows[:-1] for prompt in prompts]


def test_zero_frame_ends_replies_by_transformers_or_sesame_rule(tmp_path: Path) -> None:
    """The seventh frame becomes zeros except for its last code. `generate` ends there, Sesame's code does not."""
    model, last = make_model(), NUM_CODEBOOKS - 1
    folder, family, reference = convert(tmp_path / "all", model)
    prompt = make_prompt(family, 0)
    prompt = replace(prompt, rows=prompt.rows[:3])  # text only, which contains no renamed codes
    frames = np.array(reference.generated(prompt)) - [ids.start for ids in family.layout.audio]
    swap_codes(model, frames[6, :last].tolist())
    folder, family, reference = convert(tmp_path / "most", model)
    frames = reference.generated(prompt)
    starts = [ids.start for ids in family.layout.audio]
    assert len(frames) == 7
    assert frames[6][:last] == starts[:last]
    assert frames[6][last] != starts[last]
    late = replace(prompt, sampling=replace(prompt.sampling, audio=replace(prompt.sampling.audio, min_rows=8)))
    soon, later = ended(folder, last, prompt, late)
    assert soon == frames[:6]
    assert len(later) >= 8
    assert len(ended(folder, NUM_CODEBOOKS, prompt)[0]) == prompt.sampling.audio.max_rows
    swap_codes(model, [0] * last + [frames[6][last] - starts[last]])
    folder, *_ = convert(tmp_path / "every", model)
    assert len(ended(folder, NUM_CODEBOOKS, prompt)[0]) == 6
