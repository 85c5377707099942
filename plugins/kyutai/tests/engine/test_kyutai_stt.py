"""Kyutai STT in the engine: the text of every row equals the authors' code, even beyond the attention window."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from plugins.kyutai.lab.random_kyutai_stt import CONFIG
from plugins.kyutai.tests.kyutai_release import make_checkpoint, replies
from plugins.kyutai.tests.transformers_releases import stt_model
from stretto.family.base import Family
from stretto.family.plugin import VOCABULARY, config_at, family_at
from stretto.records.prompt import Prompt
from stretto.streams.layout import latents_of
from stretto.weights.loading import WHOLE, open_tensors
from stretto_kyutai.kyutai_stt.family import SttVocabulary
from stretto_kyutai.kyutai_stt.prompt import initial_row, track_of
from tests.engine.harness import Engine

pytestmark = pytest.mark.engine
ROOMY: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 4}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("kyutai"))


@pytest.fixture(scope="module")
def family(checkpoint: Path) -> Family:
    return family_at(checkpoint)


@pytest.fixture(scope="module")
def engine(checkpoint: Path) -> Iterator[Engine]:
    with Engine(checkpoint, **ROOMY) as engine:
        yield engine


def make_prompt(checkpoint: Path, codes: np.ndarray, **limits: int) -> Prompt:
    known = SttVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    sampling = family_at(checkpoint).tasks[0].sampling
    sampling = replace(sampling, text=replace(sampling.text, **limits), seed=0)
    return Prompt("asr", initial_row(known), sampling, track=track_of(codes, known))


def text_of(rows: list[list[int]]) -> list[int]:
    return [row[0] for row in rows]


def test_text_of_every_row_matches_the_authors(engine: Engine, checkpoint: Path, family: Family) -> None:
    """The window has 20 rows, the reply 91."""
    found = replies()
    answer = engine.run({"r": make_prompt(checkpoint, found["codes"])})["r"]
    assert text_of(answer.rows) == [*found["text"].tolist(), family.end_of_reply]
    assert answer.trailer is not None
    assert not answer.trailer.was_cut


def transformers_rows(checkpoint: Path, codes: np.ndarray) -> tuple[list[int], np.ndarray]:
    """Return transformers' greedy text [T + 1] for codes [32, T], recomputed for every row; and the pauses [T + 1, 4].

    Pauses are class 0 of the release's own heads.
    """
    config, known = config_at(checkpoint), SttVocabulary.from_record(config_at(checkpoint)[VOCABULARY])
    release = checkpoint.parent / "release"
    model, tensors = stt_model(release, CONFIG), open_tensors(release / CONFIG.get("moshi_name", WHOLE))
    heads = [tensors[f"extra_heads.{head}.weight"].float() for head in range(4)]
    frames = np.concatenate([np.full((known.num_codebooks, 1), known.codebook_size), codes], 1).T
    text, pauses = [known.num_text_ids], []
    for row in range(len(frames)):
        ids = torch.from_numpy(np.concatenate([np.array(text)[:, None], frames[: row + 1]], 1))
        ages = torch.arange(row + 1)[:, None] - torch.arange(row + 1)
        mask = ((ages >= 0) & (ages < config["sliding_window"]))[None, None]
        with torch.inference_mode():
            hidden = model.model(ids[None], attention_mask=mask, use_cache=False).last_hidden_state[0, -1]
            text.append(int(model.lm_head(hidden)[: known.num_text_ids].argmax()))
            pauses.append([float((head @ hidden).softmax(0)[0]) for head in heads])
    return text[1:], np.array(pauses)


def test_text_and_pauses_of_every_row_match_transformers(engine: Engine, checkpoint: Path, family: Family) -> None:
    codes = np.random.default_rng(5).integers(0, 64, (32, 50))
    answer = engine.run({"r": make_prompt(checkpoint, codes)})["r"]
    wanted, pauses = transformers_rows(checkpoint, codes)
    assert text_of(answer.rows) == [*wanted, family.end_of_reply]
    assert len(set(wanted)) > 5
    found = latents_of(np.array(answer.rows)[:-1, 1:])
    np.testing.assert_allclose(found, pauses, atol=1e-5)
    assert pauses.std(0).min() > 1e-3, "the heads do not differ between rows"


def test_recordings_of_different_lengths_do_not_affect_each_other(engine: Engine, checkpoint: Path) -> None:
    codes, text = replies()["codes"], replies()["text"].tolist()
    lengths = (1, 30, 90, 47)
    prompts = {f"r{length}": make_prompt(checkpoint, codes[:, :length]) for length in lengths}
    answers = engine.run(prompts, {"r30": 3, "r47": 20})
    for length in lengths:
        assert text_of(answers[f"r{length}"].rows)[:-1] == text[: length + 1]
    assert engine.is_clean()


def test_reply_ending_at_max_rows_is_marked_cut(engine: Engine, checkpoint: Path, family: Family) -> None:
    answer = engine.run({"r": make_prompt(checkpoint, replies()["codes"], max_rows=40)})["r"]
    assert text_of(answer.rows) == [*replies()["text"].tolist()[:40], family.end_of_reply]
    assert answer.trailer is not None
    assert answer.trailer.was_cut


def test_preempted_transcriptions_are_recomputed_exactly(checkpoint: Path) -> None:
    codes, text = replies()["codes"], replies()["text"].tolist()
    prompts = {f"r{at}": make_prompt(checkpoint, codes) for at in range(4)}
    with Engine(checkpoint, **ROOMY, num_gpu_blocks_override=6, max_num_batched_tokens=16) as engine:
        answers = engine.run(prompts, {"r1": 5, "r2": 9, "r3": 30})
    assert all(text_of(answer.rows)[:-1] == text for answer in answers.values())
    assert sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer) > 0
