"""A small VITA-Audio-Plus model: replies to audio input equal a recomputation, chunked and preempted."""

import json
from pathlib import Path

import pytest

from lab.releases import random_vita
from lab.releases.random_glm4_voice import write_glm4_voice
from stretto.convert.command import main
from stretto.families.vita_audio.family import SCHEDULES
from stretto.family.plugin import family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from tests.encoders.recordings import speech
from tests.engine.harness import Engine
from tests.reference.vita_audio import VitaReference
from tests.reference.vita_hearing import heard_by_plus
from tests.vita_release import command

pytestmark = pytest.mark.engine

NUM_IDS = 24
# Prompts of three blocks in chunks, which replies fill up: all that two of them take at first.
TIGHT = {"max_num_batched_tokens": 32, "max_num_seqs": 4, "num_gpu_blocks_override": 6, "async_scheduling": True}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plus")
    release = random_vita.write_release(folder / "release", random_vita.PLUS)
    codec = ["--codec", str(write_glm4_voice(folder / "codec"))]
    assert main([*command(release, folder / "checkpoint"), *codec]) == 0
    return folder / "checkpoint"


def prompts(checkpoint: Path) -> dict[str, Prompt]:
    """Return prompts in two voices with different schedules, one of them twice, as the ensemble passes them."""
    preprocessor, found = Preprocessor(checkpoint), {}
    turns = json.dumps([{"role": "system", "text": "be terse."}, {"role": "user", "audio": "pcm_in"}])
    for name, seconds, schedule in (("a", 1.0, "turbo"), ("b", 1.5, "balance"), ("c", 1.0, "vanilla")):
        options = json.dumps({"schedule": schedule, "text": {"min_rows": NUM_IDS, "max_rows": NUM_IDS}})
        pcm = speech(seconds + (name == "b"))[-round(16_000 * seconds) :]
        raw = RawRequest(messages=turns, pcm_in=pcm, sample_rate=16_000, task="dialogue", options=options)
        made = preprocessor.prepare(raw)
        found[name] = Prompt.from_bytes("prompt", made.to_bytes(), made.rows, made.features)
    return found


def expected(checkpoint: Path, prompt: Prompt) -> list[int]:
    """Return the greedy reply, computed by definition."""
    reference = VitaReference(random_vita.SMALL, random_vita.tensors(random_vita.PLUS, 1))
    schedule = SCHEDULES[prompt.sampling.schedule or "balance"]
    penalty = prompt.sampling.repetition_penalty
    return reference.reply(prompt.rows[:, 0].tolist(), schedule, NUM_IDS, penalty, heard_by_plus(checkpoint, prompt))


def test_replies_to_audio_match_the_reference_even_when_preempted(checkpoint: Path) -> None:
    asked = prompts(checkpoint)
    wanted = {name: expected(checkpoint, prompt) for name, prompt in asked.items()}
    assert wanted["a"] != wanted["b"]
    ends = family_at(checkpoint).drawn_ends
    with Engine(checkpoint, max_model_len=160, **TIGHT) as running:
        answers = running.run(asked)
        for name, ids in wanted.items():
            said = [row[0] for row in answers[name].rows]
            size = next((at for at, token in enumerate(ids) if token in ends), len(ids))
            assert said[:size] == ids[:size], name
        assert any(answer.trailer.num_preemptions for answer in answers.values())
        assert running.is_clean()
