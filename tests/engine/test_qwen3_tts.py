"""Qwen3-TTS in the engine: text added to frames, a depth transformer with its own sampler, and penalties."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stretto.engine.worker.predictors import Readout
from stretto.records.prompt import Prompt
from stretto.records.sampling import CodeSampling
from stretto.testing.checkpoints import make_prompt, write_checkpoint
from stretto.testing.reference import ReferenceModel
from tests.engine.harness import Engine
from tests.engine.recorded_logits import RecordedLogits
from tests.published_qwen3_tts import Checkpoint
from tests.small_vocabularies import QWEN3_TTS
from tests.tiers import by_night

pytestmark = pytest.mark.engine
LENGTH = 128
# 4 of 6 replies at once, prompts in chunks, and room for hardly one of the longest.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 4, "num_gpu_blocks_override": 5}


def drawn_prompt(index: int) -> Prompt:
    """Return a prompt with markers, text on its own stream, and frames; later streams may be sampled differently."""
    prompt = make_prompt(QWEN3_TTS, index, repetition_penalty=(1.3, 1.0, 1.05)[index % 3])
    random, layout = np.random.default_rng(index), QWEN3_TTS.layout
    text = random.integers(0, 50, len(prompt.rows))
    prompt.rows[2:, -1] = text[2:]
    frames = [random.integers(ids.start, ids.stop, 3) for ids in layout.audio]
    prompt.rows[-3:, : layout.num_output_streams] = np.stack(frames, 1)
    depth = (None, CodeSampling(0.0), CodeSampling(0.8, 5), CodeSampling(1.2, 0, 0.7))[index % 4]
    audio = replace(prompt.sampling.audio, min_rows=30, max_rows=34 + index)
    return replace(prompt, sampling=replace(prompt.sampling, depth=depth, audio=audio))


@pytest.mark.nightly
@pytest.mark.parametrize("is_async", [True, False], ids=["async", "sync"])
def test_sampled_replies_match_the_reference(tmp_path: Path, is_async: bool) -> None:
    """Replies are chunked and preempted, with a penalty and two samplers, one of which may be greedy."""
    folder = write_checkpoint(tmp_path, QWEN3_TTS, "small_qwen3_tts", layers=2)
    reference = ReferenceModel(folder, QWEN3_TTS, LENGTH)
    prompts = {f"r{index}": drawn_prompt(index) for index in range(6)}
    with Engine(folder, async_scheduling=is_async, max_model_len=LENGTH, **TIGHT) as engine:
        answers = engine.run(prompts)
        assert engine.is_clean()
    for name, prompt in prompts.items():
        expected, lead = reference.reply(prompt, guess=answers[name].rows)
        assert lead > 1e-5
        assert answers[name].rows == [row[: QWEN3_TTS.layout.num_output_streams] for row in expected], name
    assert sum(each.trailer.num_preemptions for each in answers.values()) > 0


@pytest.mark.parametrize("kind", ["base", *by_night("custom_voice", "voice_design")])
def test_qwen3_tts_replies_match_the_authors(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, float], None]
) -> None:
    """Codes are equal: side by side, in chunks of prompts, preempted, from the prefix cache, alone; logits to 3e-5
    of the largest."""
    checkpoint = Checkpoint(tmp_path, kind)
    cases, num_codes = checkpoint.cases(), checkpoint.family.layout.codebook_size
    starts = np.array([ids.start for ids in checkpoint.family.layout.audio])
    with Engine(checkpoint.folder, async_scheduling=kind == "custom_voice", max_model_len=LENGTH, **TIGHT) as engine:
        for _ in range(2):
            answers = engine.run({name: prompt for name, (prompt, _) in cases.items()}, dict.fromkeys(cases, 0))
            for name, (_, case) in cases.items():
                *frames, end = answers[name].rows
                assert np.array_equal(np.array(frames) - starts, case.codes), name
                assert end[0] == checkpoint.family.end_of_audio
        copies = engine.run({f"{copy} {name}": prompt for copy in range(3) for name, (prompt, _) in cases.items()})
        for name, answer in copies.items():
            assert answer.rows == answers[name.partition(" ")[2]].rows, name
        assert sum(answer.trailer.num_preemptions for answer in copies.values() if answer.trailer) > 0
        largest, sampler = 0.0, engine.core.model_executor.driver_worker.worker.model_runner.sampler
        readout = Readout(sampler._draw.heads, sampler._draw.frames)
        for prompt, case in cases.values():
            with monkeypatch.context() as patch:
                recorded = RecordedLogits(readout, patch)
                engine.run({"one": prompt})
            first, others = np.stack(recorded.first), np.stack(recorded.others).reshape(-1, *case.others.shape[1:])
            assert first.shape[1] == num_codes + 1
            for ours, theirs in ((first, case.first), (others, case.others)):
                num_rows = min(len(ours), len(theirs))
                assert num_rows >= len(case.codes)
                difference = np.abs(ours[:num_rows] - theirs[:num_rows]).max() / np.abs(theirs).max()
                largest = max(largest, float(difference))
        assert engine.is_clean()
    record_property("largest_difference", largest)
    assert largest <= 3e-5  # rounding: up to 2.4e-6 with the instructions of three processors
