"""Higgs Audio v3 in the engine: prompts and rows equal mlx-audio's, however the reply ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from plugins.cosyvoice3.tests.engine.test_cosyvoice3 import write_with_head
from plugins.higgs_audio.lab.higgs_audio_v3_replies import CASES, NUM_ROWS, SEEDS, TEXTS, WORDS, recording
from plugins.higgs_audio.tests.higgs_audio_v3_release import absolute, convert_release, stored
from stretto.family.plugin import family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto.testing import assert_family_conforms
from stretto_higgs_audio.higgs_audio_v3 import PLUGIN
from stretto_higgs_audio.higgs_audio_v3.family import NEEDED, HiggsAudioV3Vocabulary
from tests.engine.harness import Engine
from tests.tiers import by_night

pytestmark = pytest.mark.engine
# Four of eight replies at once, prompts in chunks, and room for hardly two of them.
TIGHT: dict[str, Any] = {
    "max_model_len": 128,
    "max_num_batched_tokens": 24,
    "max_num_seqs": 4,
    "num_gpu_blocks_override": 8,
}
ARRIVALS = {"7.cloned": 2, "7.sampled": 5, "8.greedy": 6, "8.cloned": 11, "8.sampled": 11}


def prompts_of(checkpoint: Path, kind: str) -> dict[str, Prompt]:
    """Return the prompts of all replies in the fixture, by seed and case."""
    preprocessor, found = Preprocessor(checkpoint), {}
    voice = {"role": "system", "text": WORDS, "codes": recording(kind).tolist()}
    for seed in SEEDS:
        for name, (audio, is_cloned) in CASES.items():
            turns = [*([voice] if is_cloned else []), {"role": "user", "text": TEXTS[seed]}]
            options = json.dumps({"seed": seed, "audio": {**audio, "max_rows": NUM_ROWS}})
            found[f"{seed}.{name}"] = preprocessor.prepare(RawRequest(messages=json.dumps(turns), options=options))
    return found


@pytest.mark.parametrize(
    ("kind", "is_async"), [("narrow", True), *by_night(("narrow", False), ("small", True), ("small", False))]
)
def test_replies_match_mlx_audio(tmp_path: Path, kind: str, is_async: bool) -> None:
    """Greedy and sampled replies, with and without a voice; alone, with other requests, and preempted.

    A reply that ends has seven rows after the end id; at the length limit, mlx-audio stops without these rows.
    """
    checkpoint, found = convert_release(tmp_path, kind), stored()
    family, prompts = family_at(checkpoint), prompts_of(checkpoint, kind)
    for name, prompt in prompts.items():
        assert prompt.rows.tolist() == absolute(family, kind, found[f"{kind}.{name}.prompt"]), name
    with Engine(checkpoint, max_model_len=256, async_scheduling=is_async) as engine:
        alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        together = engine.run(prompts, ARRIVALS)
        assert engine.is_clean()
    assert {name: answer.rows for name, answer in together.items()} == alone
    with Engine(checkpoint, async_scheduling=is_async, **TIGHT) as engine:
        preempted = engine.run(prompts, ARRIVALS)
        assert engine.is_clean()
    assert {name: answer.rows for name, answer in preempted.items()} == alone
    assert sum(each.trailer.num_preemptions for each in preempted.values() if each.trailer) > 0
    slowest, ends = family.layout.max_delay, set()
    for name, rows in alone.items():
        expected = absolute(family, kind, found[f"{kind}.{name}.rows"])
        has_ended = bool(found[f"{kind}.{name}.ended"])
        ends.add(has_ended)
        assert rows[: len(expected)] == expected, name
        assert rows[-1][0] == family.end_of_reply
        assert len(rows) == (len(expected) + 1 if has_ended else NUM_ROWS + slowest + 1), name
        assert rows[-1 - slowest][0] == family.end_of_audio
    assert ends == {False, True}


@pytest.mark.nightly
def test_family_conforms(tmp_path: Path) -> None:
    known = HiggsAudioV3Vocabulary(60, 4, 6, {name: 54 + index for index, name in enumerate(NEEDED)}, 512)
    assert_family_conforms(PLUGIN, tmp_path, known.to_record(), write_with_head, num_prompts=20)
