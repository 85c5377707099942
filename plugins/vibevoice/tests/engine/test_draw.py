"""Kernels for stretches of audio give the rows of the reference sampler."""

from typing import Any

import pytest
import torch

from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.step_program import StepSampler
from stretto_vibevoice.vibevoice.family import VibeVoiceVocabulary, vibevoice
from stretto_vibevoice.vibevoice.mechanism.draw import StretchProgram, StretchReadout
from tests.engine.worker.walks import CPU, WIDTH, RandomHeads, assert_samplers_agree, predict_latents
from tests.tiers import by_night

NUM_FEATURES = 4
FAMILY = vibevoice(VibeVoiceVocabulary(64, 51, 52, 53, 50, 8, NUM_FEATURES, 512))


class Echo:
    """Fake `LatentFeedback`, whose memory is a decaying sum of latents and whose features are the memory."""

    num_kept = NUM_FEATURES
    reach = 24

    def __call__(self, latents: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        memory = 0.5 * memory + latents[:, : self.num_kept]
        return memory, memory


def readout(rules: SegmentRules) -> StretchReadout:
    heads: Any = RandomHeads(rules, CPU)
    return StretchReadout(heads, predict_latents, WIDTH, Echo(), torch.linspace(-1, 1, WIDTH))


def group_as_on_a_gpu(sampler: StepSampler) -> None:
    """Decode in groups, as on a GPU that is batch-invariant."""
    program = sampler._program
    assert isinstance(program, StretchProgram)
    program.memory._is_on_host = False
    program.memory._group = 2


@pytest.mark.parametrize("is_whole", [False, *by_night(True)], ids=["until others follow", "whole"])
def test_kernels_match_the_reference_sampler(is_whole: bool) -> None:
    assert_samplers_agree(FAMILY, is_whole, readout, group_as_on_a_gpu)
