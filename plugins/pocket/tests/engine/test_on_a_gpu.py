"""On a GPU, all tensors of a step are on the device, and layers outside torch.compile call fused operators."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from plugins.pocket.tests import pocket_release
from stretto.engine.models import latents
from tests.engine.devices import assert_latent_steps_stay_on_the_device
from tests.engine.kernels.gpu.latent_layers import assert_layers_are_fused, latents_on_a_gpu, positions, rows
from tests.tiers import by_night

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("uses_kernels", [True, *by_night(False)])
def test_steps_do_not_mix_devices(uses_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_latent_steps_stay_on_the_device(
        pocket_release.convert_release(tmp_path, "english"), [1], 1, uses_kernels, monkeypatch
    )


def test_layers_outside_torch_compile_are_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = {"mm": 4, "clone": 3, "native_layer_norm": 2, "add": 2, "rotary_embedding": 1, "gelu": 1}
    assert_layers_are_fused(
        pocket_release.convert_release(tmp_path, "english"),
        lambda model: [lambda: model.model.layers[1](positions(), rows(model.config.hidden_size))],
        [29],
        [Counter(fused)],
        monkeypatch,
    )


def test_batch_invariant_models_use_products_for_few_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = list[Any]()
    monkeypatch.setattr(latents, "use_row_invariant_products", replaced.append)
    with latents_on_a_gpu(pocket_release.convert_release(tmp_path, "english"), monkeypatch) as state:
        for is_invariant in (False, True):
            monkeypatch.setattr(latents, "envs", SimpleNamespace(VLLM_BATCH_INVARIANT=is_invariant))
            state.model.latent_readout(state.rules)
            assert replaced == [state.model] * is_invariant
