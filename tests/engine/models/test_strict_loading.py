"""A checkpoint that does not fit is refused, with every missing, unknown or misshapen tensor listed."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stretto.errors import CheckpointError
from stretto.families.tiny.family import TINY
from stretto.testing.checkpoints import BACKBONES, write_checkpoint
from tests.engine.harness import Engine
from tests.tiers import by_night

pytestmark = pytest.mark.engine
LAYER = "model.layers.0."


def drop(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.pop(name)


CHANGES = [
    (drop("model.norm.weight"), r"lacks model\.norm\.weight$"),
    (drop(f"{LAYER}self_attn.o_proj.weight"), r"lacks model\.layers\.0\.self_attn\.o_proj\.weight$"),
    (drop(f"{LAYER}self_attn.k_proj.weight"), r"lacks model\.layers\.0\.self_attn\.k_proj\.weight$"),
    (drop(f"{LAYER}mlp.up_proj.weight"), r"lacks model\.layers\.0\.mlp\.up_proj\.weight$"),
    (lambda tensors: tensors.update(more=torch.zeros(2)), "no module or parameter named 'more'"),
    (
        lambda tensors: tensors.update({"lm_head.weight": torch.zeros(3, 128)}),
        r"lm_head\.weight: shape \[3, 128\] does not match",
    ),
]
# By day each change with one backbone, and each backbone with two changes.
BY_DAY = [(BACKBONES[at % len(BACKBONES)], *change) for at, change in enumerate(CHANGES)]
OTHERS = [(backbone, *change) for backbone, change in product(BACKBONES, CHANGES) if (backbone, *change) not in BY_DAY]


@pytest.mark.parametrize(("backbone", "change", "message"), [*BY_DAY, *by_night(*OTHERS)])
def test_error_names_mismatched_checkpoint_contents(
    backbone: str, change: Callable[[dict[str, Tensor]], object], message: str, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path, TINY, "tiny", layers=1, backbone=backbone)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises((ValueError, CheckpointError), match=message):
        Engine(folder)
