"""Replies of small VibeVoice models with one key head."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from plugins.vibevoice.lab import random_vibevoice_realtime
from plugins.vibevoice.tests import vibevoice_release
from tests.engine.head_shapes import assert_copies_give_the_same_replies, converted

pytestmark = pytest.mark.engine


def vibevoice(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    config = vibevoice_release.config("long")
    config.text_config.num_key_value_heads = 1
    patch.setattr(vibevoice_release, "config", lambda kind: config)
    return vibevoice_release.convert_release(folder, "long")


def vibevoice_realtime(patch: pytest.MonkeyPatch, folder: Path) -> Path:
    sizes, _, layers = random_vibevoice_realtime.SIZES["small"]
    patch.setitem(random_vibevoice_realtime.SIZES, "small", (sizes, (4, 1), layers))
    return converted(
        ["vibevoice-realtime", "--model", str(random_vibevoice_realtime.write_release(folder / "release"))], folder
    )


@pytest.mark.nightly
@pytest.mark.parametrize("write", [vibevoice, vibevoice_realtime])
def test_one_key_head_gives_the_replies_of_copies_of_it(
    write: Callable[[pytest.MonkeyPatch, Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_copies_give_the_same_replies(write(monkeypatch, tmp_path), tmp_path / "repeated")


@pytest.mark.parametrize("num_rows", [1, 2, 7])
@pytest.mark.parametrize("width", [32, 64, 96])
def test_norm_of_the_diffusion_head_reads_views(num_rows: int, width: int) -> None:
    """Views that are not contiguous if there are several rows give the bits of contiguous rows."""
    from vllm.platforms import current_platform

    from stretto_vibevoice.vibevoice.model import LastLayer

    current_platform.import_kernels()
    random = torch.Generator().manual_seed(0)
    layer: Any = SimpleNamespace(eps=1e-6, linear_1=lambda x: torch.cat([x, x], -1), linear_2=torch.clone)
    wide = torch.randn(num_rows, 3 * width, generator=random)
    for view in (wide[:, width : 2 * width], torch.randn(width, num_rows, generator=random).T):
        normed = LastLayer.forward(layer, view, torch.zeros_like(view))
        rows = view.clone(memory_format=torch.contiguous_format)
        assert torch.equal(normed, LastLayer.forward(layer, rows, torch.zeros_like(rows)))
        torch.testing.assert_close(normed, F.rms_norm(rows, (width,), None, 1e-6), rtol=0, atol=1e-4)
