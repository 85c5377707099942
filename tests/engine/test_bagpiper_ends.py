"""Bagpiper ends a segment with <|eos|> or <|eot|>, whichever it samples, and continues as ESPnet's loop does."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from stretto.records.prompt import Prompt
from stretto.testing.checkpoints import make_prompt, write_checkpoint
from stretto.testing.reference import ReferenceModel
from tests.engine.harness import Engine
from tests.small_vocabularies import BAGPIPER

pytestmark = pytest.mark.engine
LENGTH, EOS, EOT, ASSISTANT = 160, 2, 3, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random checkpoint that samples both end tokens often, early and late."""
    folder = write_checkpoint(tmp_path_factory.mktemp("eager"), BAGPIPER, "small_bagpiper", layers=2, backbone="qwen3")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][[EOS, EOT]] *= 3
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine(folder, max_model_len=LENGTH, async_scheduling=True) as running:
        yield running
        assert running.is_clean()


def prompts() -> dict[str, Prompt]:
    """Return prompts for captions and speech, guided and unguided, greedy and sampled; both kinds of end occur."""
    made = {}
    for index in range(24):
        task = ("tts", "generate", "chat", "speak")[index % 4]
        prompt = make_prompt(BAGPIPER, index, task)
        text, audio = (replace(each, min_rows=2, max_rows=9) for each in (prompt.sampling.text, prompt.sampling.audio))
        sampling = replace(prompt.sampling, text=text, audio=replace(audio, max_rows=20))
        made[f"{task} {index}"] = Prompt(task, prompt.rows, sampling)
    return made


def test_replies_match_the_reference_for_every_segment_end(folder: Path, engine: Engine) -> None:
    reference, asked = ReferenceModel(folder, BAGPIPER, LENGTH), prompts()
    answers = engine.run(asked)
    captions, ends = set[int](), set[tuple[str, int]]()
    for name, prompt in asked.items():
        rows, lead = reference.reply(prompt, guess=answers[name].rows)
        assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
        assert answers[name].rows == rows, name
        assert answers[name].trailer.was_cut == reference.was_cut, name
        ends.add((prompt.task, answers[name].trailer.was_cut))
        if prompt.task in ("tts", "generate"):
            before = next(row for row, follower in pairwise(rows) if follower[0] == ASSISTANT)
            captions.add(min(before[0], 256))
    assert captions == {EOS, EOT, 256}, "one ended with each, and one with a word where it could be no longer"
    assert {("chat", 0), ("chat", 1), ("speak", 0)} <= ends
