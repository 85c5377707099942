"""The benchmark of int8's distances: figures of known outputs, and runs that read the ids and latents of another."""

import torch

from benchmarks.int8_distances import NUM_ROWS, Outputs, distances, fixed
from stretto.testing.checkpoints import make_prompts
from tests.small_vocabularies import CHATTERBOX


def test_distances_of_known_outputs() -> None:
    exact, other = Outputs(), Outputs()
    exact.logits = [("first", torch.tensor([[-1.0, 1.0, -torch.inf], [4.0, 6.0, -torch.inf]]))]
    other.logits = [("first", torch.tensor([[-1.0, 1.0, -torch.inf], [6.0, 4.0, -torch.inf]]))]
    exact.latents, other.latents = [torch.tensor([[3.0, 4.0]])], [torch.tensor([[3.0, 3.0]])]
    found = distances(exact, other)
    assert found["first"] == {"rows": 2, "distance_p50": 1.0, "distance_p95": 1.9, "other": 0.5}
    assert found["latents"] == {"rows": 1, "distance_p50": 0.2, "distance_p95": 0.2}


def test_a_run_reads_the_ids_and_latents_of_another() -> None:
    first = Outputs()
    assert first.draw(lambda logits: torch.tensor([3]))(torch.zeros(1, 1, 4)).tolist() == [3]
    assert first.predict(lambda hidden: hidden)(torch.ones(1, 2)).tolist() == [[1.0, 1.0]]
    second = Outputs(first)
    assert second.draw(lambda logits: torch.tensor([2]))(torch.ones(1, 1, 4)).tolist() == [3]
    assert second.predict(lambda hidden: hidden)(2 * torch.ones(1, 2)).tolist() == [[1.0, 1.0]]
    assert second.latents[0].tolist() == [[2.0, 2.0]]
    assert second.logits[0][1].tolist() == [[1.0] * 4]


def test_replies_have_a_fixed_length_and_logits_without_a_mask_that_depends_on_them() -> None:
    (prompt,) = make_prompts(CHATTERBOX, 1).values()
    sampling = fixed(prompt).sampling
    assert prompt.sampling.min_p > 0
    assert sampling.min_p == 0
    assert sampling.audio.min_rows == sampling.audio.max_rows == NUM_ROWS


def test_repeated_draws_from_the_same_logits_are_not_recorded() -> None:
    outputs = Outputs()
    draw = outputs.draw(lambda logits: torch.tensor([3]))

    def _redraw() -> torch.Tensor:
        return draw(torch.zeros(1, 1, 4))

    def chosen_others() -> torch.Tensor:
        return draw(torch.ones(1, 1, 4))

    assert [_redraw().tolist(), chosen_others().tolist()] == [[3], [3]]
    assert [kind for kind, _ in outputs.logits] == ["codes"]
    assert len(outputs.ids) == 2
