"""On a GPU, all tensors of a step are on the device, and layers outside torch.compile call fused operators."""

from collections import Counter
from pathlib import Path

import pytest

from plugins.vibevoice.tests import vibevoice_release
from tests.engine.devices import assert_latent_steps_stay_on_the_device
from tests.engine.kernels.gpu.latent_layers import assert_layers_are_fused, rows

pytestmark = pytest.mark.engine


@pytest.mark.nightly
@pytest.mark.parametrize("uses_kernels", [True, False])
def test_steps_do_not_mix_devices(uses_kernels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_latent_steps_stay_on_the_device(
        vibevoice_release.convert_release(tmp_path), [2, 10], 4, uses_kernels, monkeypatch
    )


@pytest.mark.nightly
def test_connectors_are_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone is compiled on a GPU."""
    assert_layers_are_fused(
        vibevoice_release.convert_release(tmp_path),
        lambda model: [lambda: model.acoustic_connector(rows(model.num_numbers))],
        [8],
        [Counter({"addmm": 2, "rms_norm": 1})],
        monkeypatch,
    )
