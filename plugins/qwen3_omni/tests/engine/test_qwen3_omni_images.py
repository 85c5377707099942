"""Images in Qwen3-Omni's thinker: rows, positions and greedy ids equal those of transformers."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from plugins.qwen3_omni.lab.random_qwen3_omni import small_config
from plugins.qwen3_omni.tests.engine.thinker_case import WIDER, Case
from plugins.qwen3_omni.tests.published_qwen3_omni_thinker import (
    END,
    Processor,
    Theirs,
    Written,
    convert,
    picture,
    sights,
)
from stretto.family.image_encoder import positions_of
from tests.engine.harness import Engine
from tests.tiers import by_night

pytestmark = pytest.mark.engine
LENGTH, NUM_IDS = 288, 24
# 4 of 5 replies at once, prompts in chunks, and room for hardly one of the longest.
TIGHT: dict[str, Any] = {"max_num_batched_tokens": 24, "max_num_seqs": 4, "num_gpu_blocks_override": 10}


@pytest.fixture(scope="module", params=["whole", *by_night("wider")])
def case(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Case]:
    config, seed = (small_config(), 1) if request.param == "whole" else (WIDER, 2)
    checkpoint = convert(tmp_path_factory.mktemp("images"), config, seed)
    with Engine(checkpoint, max_model_len=LENGTH, **TIGHT) as engine:
        yield Case(Written(checkpoint), engine, Theirs(config, seed), Processor(checkpoint))


def test_prompts_match_the_processor(case: Case) -> None:
    """Ids and patches are equal, and so are the three positions of each row, those after the prompt too."""
    for name, pieces in sights().items():
        inputs, prompt = case.processor.inputs(pieces), case.written.prompt(pieces, NUM_IDS)
        assert prompt.rows[:, 0].tolist() == inputs["input_ids"][0].tolist(), name
        assert prompt.patches is not None
        assert np.array_equal(prompt.patches, inputs["pixel_values"].numpy()), name
        lengths = inputs["feature_attention_mask"].sum(1) if "feature_attention_mask" in inputs else None
        given = inputs["input_ids"], inputs["image_grid_thw"], None, inputs["attention_mask"], False, lengths
        positions, delta = case.theirs.thinker.get_rope_index(*given)
        size = len(prompt.rows)
        assert np.array_equal(positions_of(prompt.images, 0, size), positions[:, 0].long().numpy()), name
        assert (positions_of(prompt.images, size, size + 9) == np.arange(size, size + 9) + delta.item()).all(), name
        parts = [positions_of(prompt.images, first, min(first + 7, size)) for first in range(0, size, 7)]
        assert np.array_equal(np.concatenate(parts, 1), positions[:, 0].long().numpy()), name


def test_encoder_matches_transformers(case: Case) -> None:
    """Rows for the backbone and for its first layers agree to 1e-5, for each image of a conversation."""
    model: Any = case.engine.core.model_executor.driver_worker.worker.model_runner.model
    for name, pieces in sights().items():
        inputs, prompt = case.processor.inputs(pieces), case.written.prompt(pieces, NUM_IDS)
        with torch.no_grad():
            made = case.theirs.thinker.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
        for index, image in enumerate(prompt.images):
            parts = [made.pooler_output[index], *(level[index] for level in made.deepstack_features)]
            with torch.inference_mode():
                features = torch.from_numpy(image.features)
                found = model.image_encoder(model.adaptor, features, image.height, image.width)
            torch.testing.assert_close(found, torch.cat(parts, 1), rtol=0, atol=1e-5, msg=name)


def test_greedy_replies_match_transformers(case: Case) -> None:
    """Replies are batched, chunked, preempted, cached, and unbatched."""
    expected = dict[str, list[int]]()
    for name, pieces in sights().items():
        ids, logits = case.theirs.reply(case.processor.inputs(pieces), NUM_IDS)
        first, second = np.sort(logits)[:, -2:].T[::-1]
        assert (first - second).min() > 1e-4, f"{name}: nearly undecided: choose another seed"
        expected[name] = ids if ids[-1] == END else [*ids, END]
    prompts = {name: case.written.prompt(pieces, NUM_IDS) for name, pieces in sights().items()}
    num_preemptions = 0
    for _ in range(2):
        answers = case.engine.run(prompts, dict.fromkeys(prompts, 0))
        num_preemptions += sum(answer.trailer.num_preemptions for answer in answers.values() if answer.trailer)
        assert {name: [row[0] for row in answer.rows] for name, answer in answers.items()} == expected
    assert num_preemptions > 0
    for name, prompt in prompts.items():
        assert [row[0] for row in case.engine.run({"one": prompt})["one"].rows] == expected[name]
    assert case.engine.is_clean()


def test_encoded_rows_are_dropped_after_the_prompt(case: Case) -> None:
    prompt, numbers = case.written.prompt(sights()["text, images"], NUM_IDS), list[int]()
    encoded = case.engine.model_state.input_embeddings._of_slot
    case.engine.core.reset_prefix_cache()
    case.engine.run({"one": prompt}, after_step=lambda _: numbers.append(sum(map(len, encoded.values()))))
    assert numbers[0] == 2
    assert numbers == sorted(numbers, reverse=True)
    assert not any(numbers[-NUM_IDS:])


def test_replies_depend_on_the_image(case: Case) -> None:
    """Prompts with equal ids share no cached rows if their images differ, in colours or only in shape."""
    (seen,) = sights()["image"]
    pictures = [picture(64, 64, seed) for seed in range(4)] + [picture(32, 128)]
    prompts = [case.written.prompt((replace(seen, pixels=pixels),), NUM_IDS) for pixels in pictures]
    assert all(np.array_equal(prompt.rows, prompts[0].rows) for prompt in prompts)
    (image,) = prompts[0].images
    turned = replace(prompts[0], images=(replace(image, height=image.height // 2, width=image.width * 2),))
    alone, cached = dict[int, list[list[int]]](), dict[int, list[list[int]]]()
    for index, prompt in enumerate([*prompts, turned]):
        case.engine.core.reset_prefix_cache()
        alone[index] = case.engine.run({"one": prompt})["one"].rows
    for index, prompt in enumerate([*prompts, turned]):
        cached[index] = case.engine.run({"one": prompt})["one"].rows
    assert cached == alone
    assert len({str(rows) for rows in alone.values()}) > 1
