"""Converted releases give the same ids on all streams as their original files, sampled and greedy."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.releases.random_espnet import Published
from stretto.family.audio_format import AudioFormat
from stretto.family.base import Family
from stretto.records.prompt import InputAudio, Prompt
from stretto.testing.checkpoints import make_prompt, make_prompts
from tests.engine.harness import Engine
from tests.published_checkpoints import convert, write_bagpiper, write_opuslm
from tests.reference.published import PublishedReference
from tests.small_vocabularies import BAGPIPER, DIALOGUE, OPUSLM
from tests.tiers import by_night

pytestmark = pytest.mark.engine
LENGTH = 160
TOWER = "multimodal_io_dict.continuous_audio.model.audio_tower."


def with_audio(prompt: Prompt, published: Published) -> Prompt:
    """Return the prompt with 2.3 s of audio after its third row."""
    audio_format = AudioFormat.from_config({"audio_config": json.loads((published.audio / "config.json").read_text())})
    features = np.random.default_rng(0).standard_normal((230, 128)).astype(np.float32)
    num_rows = audio_format.num_rows(len(features))
    rows = np.insert(prompt.rows, [3] * num_rows, 0, axis=0)
    return replace(prompt, rows=rows, audios=(InputAudio(3, num_rows, features),))


@pytest.mark.parametrize(
    ("command", "family", "backbone"),
    [
        ("bagpiper", BAGPIPER, "qwen3"),
        ("opuslm-dialogue", DIALOGUE, "llama"),
        *by_night(("opuslm", OPUSLM, "olmo2"), ("opuslm", OPUSLM, "llama")),
    ],
)
def test_converted_releases_reply_unchanged(command: str, family: Family, backbone: str, tmp_path: Path) -> None:
    if family is BAGPIPER:
        published = write_bagpiper(tmp_path, seed=3)
    else:
        published = write_opuslm(tmp_path, backbone=backbone, is_dialogue=family is DIALOGUE, seed=3)
    folder = convert(command, published, tmp_path / "out")
    reference = PublishedReference(published, family, LENGTH)
    prompts = make_prompts(family, 4)
    if family is BAGPIPER:
        prompts["heard"] = with_audio(make_prompt(family, 5, "understand"), published)
    with Engine(folder, max_model_len=LENGTH) as engine:
        answers = engine.run(prompts)
    for name, prompt in prompts.items():
        rows, lead = reference.reply(prompt, guess=answers[name].rows)
        assert lead > 1e-5, "the reference itself was nearly undecided: choose another seed"
        assert answers[name].rows == rows


def test_bagpiper_audio_tower_weights_come_from_its_checkpoint(tmp_path: Path) -> None:
    published = write_bagpiper(tmp_path)
    stored = torch.load(published.model, weights_only=True)["module"]
    with Engine(convert("bagpiper", published, tmp_path / "out"), max_model_len=LENGTH) as engine:
        model = engine.core.model_executor.driver_worker.worker.model_runner.model
        served = {f"{TOWER}{name}": tensor.clone() for name, tensor in model.audio_tower.named_parameters()}
        served |= {f"adaptor.continuous_audio.{name}": each.clone() for name, each in model.adaptor.named_parameters()}
    assert served.keys() == {name for name in stored if name.startswith((TOWER, "adaptor."))}
    assert all(torch.equal(tensor, stored[name]) for name, tensor in served.items())
