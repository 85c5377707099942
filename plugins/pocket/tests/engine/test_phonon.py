"""Phonon in the engine: latents equal those of transformers' class, and samples those of the authors' runtime."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.pocket.lab.phonon_replies import FRAME, NUM_SPOKEN_FRAMES, PREPARED, SEEDS, STRIDE, TEXTS, VOICE
from plugins.pocket.lab.random_phonon import KINDS, THRESHOLDS, config
from plugins.pocket.tests.phonon_release import convert_release, stored
from stretto.codecs.base import Window
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.preprocessing.request import Preprocessor, RawRequest
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from stretto.testing import assert_family_conforms
from stretto_pocket.codec import load
from stretto_pocket.phonon import PLUGIN
from stretto_pocket.phonon.model import StrettoPhononForCausalLM
from stretto_pocket.pocket_tts.model import gelu_tanh
from tests.engine.harness import Engine
from tests.engine.nudges import assert_latents_near
from tests.tiers import by_night

pytestmark = pytest.mark.engine
TIGHT = {"max_num_batched_tokens": 24, "num_gpu_blocks_override": 5, "max_model_len": 128}
TAIL_ROWS = 2
# The runtime and this engine compute in float32, and differ by up to 5e-6 (5e-7 in `odd`). The two forms of GELU in the
# codec of `odd` differ by 2e-5.
PCM_TOLERANCES = {"small": 1e-4, "steps": 1e-4, "odd": 1e-5}


def prompt_of(checkpoint: Path, text: str, seed: int, **audio: Any) -> Prompt:
    made = Preprocessor(checkpoint).prepare(RawRequest(text=text, options=f'{{"voice": "{VOICE}", "piece": 0}}'))
    sampling = replace(made.sampling, seed=seed)
    return replace(made, sampling=replace(sampling, audio=replace(sampling.audio, **audio)))


def growing(checkpoint: Path) -> Prompt:
    """Return a prompt of almost two KV blocks, whose reply needs a third block, which other requests have by then."""
    text = "one more"
    while len((prompt := prompt_of(checkpoint, text, 1, min_rows=30)).rows) < 54:
        text += " so"
    assert len(prompt.rows) < 60
    return prompt


@pytest.mark.parametrize(
    ("kind", "is_async"), [("steps", False), *by_night(*((kind, kind != "steps") for kind in KINDS), ("steps", True))]
)
def test_latents_and_reply_ends_match_transformers(tmp_path: Path, kind: str, is_async: bool) -> None:
    """Replies stay bit-identical with other requests and preemption."""
    checkpoint, found = convert_release(tmp_path, kind), stored()
    family = family_at(checkpoint)
    prompts = {f"own{seed}": prompt_of(checkpoint, PREPARED, seed) for seed in SEEDS}
    prompts |= {f"long{seed}": prompt_of(checkpoint, PREPARED, seed, min_rows=24, max_rows=24) for seed in SEEDS}
    assert prompts["own7"].rows[13:-1, 0].tolist() == found["ids"].tolist()
    with Engine(checkpoint, **TIGHT, async_scheduling=is_async) as engine:
        alone = {name: engine.run({name: prompt})[name].rows for name, prompt in prompts.items()}
        together = engine.run(prompts, {"long8": 3})
        assert {name: answer.rows for name, answer in together.items()} == alone
        preempted = engine.run({"first": growing(checkpoint), "long7": prompts["long7"]}, {"long7": 2})["long7"]
        assert preempted.rows == alone["long7"]
        assert preempted.trailer is not None
        assert preempted.trailer.num_preemptions > 0
        assert engine.is_clean()
    for seed in SEEDS:
        latents, logits, nudged = (found[f"{kind}.{seed}.{name}"] for name in ("latents", "end_logits", "nudged"))
        ended = int(np.flatnonzero(logits > THRESHOLDS[kind])[0])
        rows, long = (np.array(alone[f"{name}{seed}"], np.int64) for name in ("own", "long"))
        assert rows[-1, 0] == family.end_of_reply
        assert len(rows) - 1 == ended + TAIL_ROWS
        assert_latents_near(latents_of(long[: len(latents), 1:].astype(np.int32)), latents, nudged)
        assert_latents_near(
            latents_of(rows[:-1, 1:].astype(np.int32)), latents[: len(rows) - 1], nudged[: len(rows) - 1]
        )


@pytest.mark.parametrize("kind", ["odd", *by_night("small", "steps")])
def test_samples_without_noise_match_the_authors_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """From the text to the samples, for texts that the runtime changes.

    The fade-in is this codec's own. In a release without an id, as in Pocket TTS's, the runtime has GELU's tanh form,
    which transformers does not have.
    """
    if config(kind)["model_id"] is None:
        monkeypatch.setattr(StrettoPhononForCausalLM, "activate", staticmethod(gelu_tanh))
    checkpoint = convert_release(tmp_path, kind)
    length = {"temperature": 0.0, "min_rows": NUM_SPOKEN_FRAMES, "max_rows": NUM_SPOKEN_FRAMES}
    prompts = {str(at): prompt_of(checkpoint, text, 0, **length) for at, text in enumerate(TEXTS)}
    with Engine(checkpoint, max_model_len=512) as engine:
        answers = engine.run(prompts)
    rows = np.stack([np.array(answers[str(at)].rows)[:NUM_SPOKEN_FRAMES, 1:] for at in range(len(TEXTS))])
    codec = load(checkpoint)
    window = Window(
        torch.from_numpy(rows.transpose(0, 2, 1)), 0, 0, torch.zeros(len(rows)).long(), codec.initial_state(len(rows))
    )
    pcm = codec.decode(window)[0].numpy()[:, ::STRIDE]
    faded = FRAME // STRIDE
    np.testing.assert_allclose(pcm[:, faded:], stored()[f"{kind}.pcm"][:, faded:], rtol=0, atol=PCM_TOLERANCES[kind])


@pytest.mark.nightly
def test_family_conforms(tmp_path: Path) -> None:
    checkpoint = convert_release(tmp_path)

    def write(folder: Path, family: Family, name: str, vocabulary: Mapping[str, Any]) -> Path:
        return Path(shutil.copytree(checkpoint, folder))

    assert_family_conforms(PLUGIN, tmp_path / "conforming", config_at(checkpoint)[VOCABULARY], write)
