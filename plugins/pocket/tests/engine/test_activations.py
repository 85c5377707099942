"""Activations of a row have the same bits in every batch, with any number of threads."""

import pytest

from stretto_pocket.phonon.model import StrettoPhononForCausalLM
from stretto_pocket.pocket_tts.model import gelu_tanh
from tests.engine.kernels.cpu.activations import assert_batch_invariant, num_threads

__all__ = ["num_threads"]
ACTIVATED = {"gelu_tanh": gelu_tanh, "gelu": StrettoPhononForCausalLM.activate}


@pytest.mark.parametrize("name", ACTIVATED)
def test_activations_are_batch_invariant(name: str, num_threads: int) -> None:
    assert_batch_invariant(ACTIVATED[name])
