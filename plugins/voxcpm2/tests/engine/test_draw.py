"""Kernels for guided latents give the rows of the reference sampler."""

from dataclasses import replace

import pytest

from stretto_voxcpm2.family import GuidedRows
from tests.engine.worker.walks import assert_samplers_agree
from tests.speech_families import GUIDED_LATENTS
from tests.tiers import by_night

FAMILY = replace(GUIDED_LATENTS, drawing=GuidedRows())


@pytest.mark.parametrize("is_whole", [False, *by_night(True)], ids=["until others follow", "whole"])
def test_kernels_match_the_reference_sampler(is_whole: bool) -> None:
    assert_samplers_agree(FAMILY, is_whole)
