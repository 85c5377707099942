"""VibeVoice Realtime in the engine: latents equal those of the authors' code, whole or word by word."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.vibevoice.lab.random_vibevoice_realtime import NUM_NUMBERS
from plugins.vibevoice.lab.vibevoice_realtime_replies import STRIDE
from plugins.vibevoice.tests.vibevoice_realtime_release import convert_release, prompts_of, stored
from stretto.codecs.base import Window
from stretto.engine.reply_rules import TextUpdate
from stretto.engine.tracks import ENDLESS
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from stretto.testing import assert_family_conforms
from stretto_vibevoice.codec import load
from stretto_vibevoice.vibevoice_realtime import PLUGIN
from stretto_vibevoice.vibevoice_realtime.family import TextWindows
from tests.engine.harness import Answer, Engine, update_request
from tests.engine.nudges import assert_latents_near
from tests.tiers import SYNC_BY_DAY, by_night

pytestmark = pytest.mark.engine
# Prompts in chunks, and memory for little more than one guided reply: others are preempted.
TIGHT: dict[str, Any] = {
    "max_num_batched_tokens": 24,
    "max_num_seqs": 6,
    "num_gpu_blocks_override": 7,
    "max_model_len": 128,
}
ARRIVALS = {"more": 3, "8": 9, "9": 30}
MAX_ROWS = 60
# Number of rows of a reply when it is cancelled, number of tokens that it has, and True if its next row is a token.
CANCELLED = ((3, 17, True), (8, 17, False), (12, 17, True), (18, 17, False), (14, 8, True))
PCM_TOLERANCE = 1e-4


def speak_word_by_word(engine: Engine, prompts: dict[str, Prompt], seed: int) -> dict[str, Answer]:
    """Return replies to texts whose tokens arrive in parts at random steps."""
    random, answers = np.random.default_rng(seed), {name: Answer() for name in prompts}
    left = {name: list(prompt.track) for name, prompt in prompts.items()}
    for name, prompt in prompts.items():
        engine.add(name, replace(prompt, track=(), is_open=True))
    for _ in range(2000):
        for name in [name for name in left if random.random() < 0.3]:
            number = int(random.integers(0, 4))
            part, left[name] = left[name][:number], left[name][number:]
            update = TextUpdate(name, np.array(part, np.int32), is_last=not left[name])
            engine.core.add_request(update_request(update))
            if not left[name]:
                del left[name]
        if engine.is_busy():
            engine._step(answers)
        elif not left:
            return answers
    raise AssertionError("it does not come to an end")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("small", {}),
        *by_night(("deep", {}), ("small", {"enable_prefix_caching": False}), ("deep", {"async_scheduling": True})),
    ],
    ids=str,
)
def test_latents_match_the_authors_code(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    """Replies stay bit-identical with other requests, preempted, and if their text arrives word by word."""
    checkpoint, found = convert_release(tmp_path, kind), stored()
    family, prompts = family_at(checkpoint), prompts_of(checkpoint, MAX_ROWS)
    with Engine(checkpoint, **TIGHT, **options) as engine:
        alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        together = engine.run(prompts | {"more": prompts["7"]}, ARRIVALS)
        assert {name: answer.rows for name, answer in together.items()} == alone | {"more": alone["7"]}
        assert sum(answer.trailer.num_preemptions for answer in together.values() if answer.trailer) > 0
        streamed = speak_word_by_word(engine, prompts, 3)
        assert {name: answer.rows for name, answer in streamed.items()} == alone
        assert engine.is_clean()
    codec = load(checkpoint)
    for name, rows in alone.items():
        ids = np.array(rows, np.int64)
        is_frame = ids[:, 0] == family.layout.audio[0].start
        latents, nudged, pcm = (found[f"{kind}.{name}.{each}"] for each in ("latents", "nudged", "pcm"))
        assert ids[-1, 0] == family.end_of_reply
        assert is_frame.sum() == found[f"{kind}.{name}.num_frames"] == len(latents)
        words = ids[is_frame, 1 : 2 + NUM_NUMBERS].astype(np.int32)
        assert_latents_near(latents_of(words[:, :NUM_NUMBERS]), latents, nudged)
        window = Window(torch.from_numpy(words.T[None]).long(), 0, 0, torch.zeros(1).long(), codec.initial_state(1))
        samples = codec.decode(window)[0].numpy()[0, ::STRIDE]
        np.testing.assert_allclose(samples, pcm.clip(-1, 1), rtol=0, atol=PCM_TOLERANCE)


@pytest.mark.parametrize("is_async", SYNC_BY_DAY)
def test_cancelled_reply_leaves_others_unchanged(tmp_path: Path, is_async: bool) -> None:
    """A reply leaves in its first or second window of text or frames, or while it waits for the rest of a window."""
    checkpoint = convert_release(tmp_path)
    prompts = prompts_of(checkpoint, MAX_ROWS)
    audio = replace(prompts["7"].sampling.audio, min_rows=MAX_ROWS)
    whole = replace(prompts["7"], sampling=replace(prompts["7"].sampling, audio=audio))
    windows = family_at(checkpoint).track
    assert isinstance(windows, TextWindows)
    with Engine(checkpoint, **TIGHT, async_scheduling=is_async) as engine:
        alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        for num_rows, number, is_word in CANCELLED:
            is_open = number < len(whole.track) - 1
            leaving = replace(whole, track=whole.track[:number], is_open=True) if is_open else whole
            assert windows.is_word(num_rows, ENDLESS if is_open else number) == is_word
            answers = {name: Answer() for name in ("leaving", *prompts)}
            for name, prompt in {"leaving": leaving, **prompts}.items():
                engine.add(name, prompt)
            while engine.is_busy():
                engine._step(answers)
                found = engine.scheduler.requests.get("leaving")
                if found is not None and found.num_output_tokens == num_rows and not is_open:
                    engine.core.abort_requests(["leaving"])
            if is_open:
                assert engine.scheduler.requests["leaving"].num_output_tokens == num_rows
                engine.core.abort_requests(["leaving"])
            assert answers.pop("leaving").trailer is None
            assert {name: answer.rows for name, answer in answers.items()} == alone
            assert engine.is_clean()


@pytest.mark.nightly
def test_family_conforms(tmp_path: Path) -> None:
    checkpoint = convert_release(tmp_path)

    def write(folder: Path, family: Family, name: str, vocabulary: Mapping[str, Any]) -> Path:
        return Path(shutil.copytree(checkpoint, folder))

    vocabulary = config_at(checkpoint)[VOCABULARY]
    assert_family_conforms(PLUGIN, tmp_path / "conforming", vocabulary, write, num_prompts=40)
