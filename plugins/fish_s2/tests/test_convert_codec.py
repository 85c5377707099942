"""Conversion of `codec.pth` is strict, and needs nothing but its tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.fish_s2.lab.random_fish_s2_codec import FILE, KINDS, PUBLISHED, shapes_of, write_codec
from stretto.convert.conversion import ConvertedNetwork
from stretto.errors import CheckpointError
from stretto.testing.releases import Edit, edited
from stretto.weights.loading import check
from stretto_fish_s2.codec import FishS2Config, codec_shapes
from stretto_fish_s2.convert_codec import codec_network, plan, sizes


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_come_from_the_shapes(kind: str) -> None:
    """The published file has 541 tensors and 1.871 GB, of which six, which are computed, have 0.305 GB."""
    published: dict[str, Any] = {
        name: torch.empty(shape, device="meta") for name, shape in shapes_of(KINDS[kind]).items()
    }
    config = FishS2Config.from_record(sizes(published))
    assert config == FishS2Config.from_record(KINDS[kind])
    parts = plan(config)
    check(parts, published, ())
    written = {each.name: each.written for part in parts.values() for each in (part, *part.also)}
    assert written == codec_shapes(config)
    if KINDS[kind] is PUBLISHED:
        assert (len(published), sum(each.numel() for each in published.values())) == (535, 391_430_530)


@pytest.mark.parametrize("under", ["state_dict", "generator", "both"])
def test_tensors_may_be_nested_and_prefixed(tmp_path: Path, under: str) -> None:
    """Tensors of other networks that are used in training are ignored."""
    (tmp_path / "plain").mkdir()
    plain, other = write_codec(tmp_path / "plain"), write_codec(tmp_path / "other")
    with edited(other / FILE) as stored:
        found = dict(stored)
        stored.clear()
        if under != "state_dict":
            found = {f"generator.{name}": each for name, each in found.items()} | {"discriminator.x": torch.ones(2)}
        stored.update(found if under == "generator" else {"state_dict": found, "step": 7})
    one, two = (ConvertedNetwork.from_network(codec_network(each), {}) for each in (plain, other))
    assert one.record == two.record
    for entry, same in zip(one.entries, two.entries, strict=True):
        assert entry.name == same.name
        assert entry.read().equal(same.read())


NORM, QUERIES = "encoder.block.0.conv.parametrizations.weight.original0", "quantizer.pre_module.layers.1.attention.wqkv"
SEMANTIC = "quantizer.semantic_quantizer.quantizers.0.codebook.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(NORM), f"missing: {NORM}"),
        (lambda t: t.pop(SEMANTIC), "semantic_codebook_size: expected an integer in [1, 65536], got None"),
        (lambda t: t.update({"more": torch.zeros(2)}), "unknown: more"),
        (lambda t: t.update({"more": "text"}), "expected tensors by name, or under 'module', 'state_dict' or 'model'"),
        (lambda t: t.update({NORM: torch.ones(8)}), f"wrong shape: {NORM} [8] instead of [8, 1, 1]"),
        (
            lambda t: t.update({f"{QUERIES}.weight": torch.ones(256, 128)}),
            f"wrong shape: {QUERIES}.weight [256, 128] instead of [384, 128]",
        ),
        (lambda t: t.update({SEMANTIC: torch.ones(64)}), f"wrong shape: {SEMANTIC} [64] instead of [64, 8]"),
        (lambda t: t.update({NORM: torch.ones(8, 1, 1, dtype=torch.cfloat)}), "expected dense tensors of real numbers"),
        (
            lambda t: [t.pop(name) for name in list(t) if ".block.5.layers." in name],
            "encoder_n_layer: expected an integer in [1, 65536], got 0",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("encoder.")],
            "encoder_dim: expected an integer in [1, 65536], got None",
        ),
    ],
)
def test_error_names_the_unexpected_tensor(tmp_path: Path, edit: Edit, message: str) -> None:
    release = write_codec(tmp_path)
    with edited(release / FILE) as stored:
        edit(stored)
    with pytest.raises(CheckpointError) as refused:
        codec_network(release)
    assert message in str(refused.value)
    assert FILE in str(refused.value)


def test_codec_file_must_belong_to_the_release(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=FILE):
        codec_network(tmp_path)
    write_codec(tmp_path / "elsewhere")
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere" / FILE)
    release = tmp_path / "release"
    release.mkdir()
    (release / FILE).symlink_to(tmp_path / "elsewhere" / FILE)
    with pytest.raises(CheckpointError, match="expected a file of this release, got a link to"):
        codec_network(release)
