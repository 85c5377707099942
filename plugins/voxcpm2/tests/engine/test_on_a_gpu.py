"""On a GPU, all tensors of a step are on the device, and layers outside torch.compile call fused operators."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from plugins.voxcpm2.tests import voxcpm2_release
from tests.engine.devices import assert_latent_steps_stay_on_the_device
from tests.engine.kernels.gpu.latent_layers import NUM_ROWS, Run, assert_layers_are_fused, positions, rows

pytestmark = pytest.mark.engine
LLAMA_LAYER = Counter({"mm": 4, "fused_add_rms_norm": 2, "rotary_embedding": 1, "silu_and_mul": 1})
# Queries and keys are copied for the rotation.
LOCAL_ATTENTION = Counter({"clone": 2, "local_attention": 1})


def runs_of(model: Any) -> list[Run]:
    """Return runs of the second layer of the backbone and of the patch encoder."""
    x = rows(model.config.hidden_size)
    number = NUM_ROWS * (1 + model.head.num_latents)
    tokens = rows(model.config.encoder["width"], number)
    layers = model.patches.transformer.layers
    return [
        lambda: model.model.layers[1](positions(), x, x),
        lambda: layers[1](positions(number), tokens, tokens, number // NUM_ROWS),
    ]


@pytest.mark.nightly
@pytest.mark.parametrize("uses_kernels", [True, False])
def test_steps_do_not_mix_devices(uses_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_latent_steps_stay_on_the_device(
        voxcpm2_release.convert_release(tmp_path), [2, 10], 4, uses_kernels, monkeypatch
    )


@pytest.mark.nightly
def test_layers_outside_torch_compile_are_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = [LLAMA_LAYER, LLAMA_LAYER + LOCAL_ATTENTION]
    assert_layers_are_fused(voxcpm2_release.convert_release(tmp_path), runs_of, [37, 40], fused, monkeypatch)
