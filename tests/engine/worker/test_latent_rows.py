"""Only rows that may have a latent are embedded as latents in steps with prompts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from stretto.engine.worker.latent_rows import LatentRows
from stretto.engine.worker.slots import HostArrays
from tests import latent_model
from tests.engine.harness import Engine
from tests.speech_families import LATENTS

AUDIO = LATENTS.layout.audio[0].start
TEXT = AUDIO - 1


def batch(*spans: tuple[int, int, int]) -> Any:
    """Return a batch with the slot, the number of computed rows and the number of rows of each request."""
    slots, computed, scheduled = np.array(spans).T
    begins = np.concatenate([[0], np.cumsum(scheduled)])
    return SimpleNamespace(
        idx_mapping_np=slots, num_computed_tokens_np=computed, num_scheduled_tokens=scheduled, query_start_loc_np=begins
    )


def test_rows_with_latents_are_those_of_prompts_and_all_of_replies() -> None:
    rows = LatentRows(LATENTS.layout, HostArrays())
    prompts = [TEXT, AUDIO, AUDIO, TEXT], [TEXT] * 5, None
    for slot, ids in enumerate(prompts):
        rows.fill_slot(slot, SimpleNamespace(prompt_token_ids=ids))  # type: ignore[arg-type]
    assert rows.rows(batch((0, 0, 4), (1, 0, 5))).tolist() == [1, 2]
    assert rows.rows(batch((1, 2, 3), (0, 2, 2))).tolist() == [3], "the second chunk of each prompt"
    assert rows.rows(batch((1, 3, 4), (0, 4, 1))).tolist() == [2, 3, 4], "the last two rows of a prompt, and replies"
    assert rows.rows(batch((2, 0, 2))).tolist() == [0, 1], "the prompt is unknown"
    assert rows.rows(batch((1, 0, 2))).tolist() == []
    rows.fill_slot(0, SimpleNamespace(prompt_token_ids=[TEXT]))  # type: ignore[arg-type]
    assert rows.rows(batch((0, 0, 1))).tolist() == []
    assert rows.rows(batch((3, 0, 2))).tolist() == [0, 1], "a slot without a request, in vLLM's profiling run"


@pytest.mark.engine
def test_latents_of_chosen_rows_equal_those_of_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_embedded = []
    with Engine(latent_model.write(tmp_path, 32, 1), max_model_len=160) as engine:
        model = engine.model_state.model
        embed = model.embed_latents

        def counted(latents: torch.Tensor) -> torch.Tensor:
            num_embedded.append(len(latents))
            embedded: torch.Tensor = embed(latents)
            return embedded

        monkeypatch.setattr(model, "embed_latents", counted)
        rows = torch.randn(40, 1 + model.num_words).view(torch.int32)
        rows[:, 0] = TEXT
        rows[[5, 6, 30], 0] = AUDIO
        expected, found = (torch.full((40, 32), torch.nan) for _ in range(2))
        model.embed_rows(rows, expected)
        model.embed_rows(rows, found, torch.tensor([5, 6, 7, 30, 39]))
        assert torch.equal(found, expected)
        model.embed_rows(rows, found, torch.tensor([], dtype=torch.int64))
    assert num_embedded == [3, 3]
