"""Random releases of the published sizes, which benchmarks serve, have the published numbers of parameters."""

from math import prod

import pytest

from plugins.pocket.lab.random_pocket import config, shapes


@pytest.mark.parametrize(
    ("kind", "language_model", "codec"),
    [("published", 89.4, 20.1), ("published_2m", 0.9, 1.0), ("published_7m", 4.3, 2.6), ("published_18m", 15.6, 2.6)],
)
def test_release_has_the_published_parameter_count(kind: str, language_model: float, codec: float) -> None:
    """Parameters in millions. The codec of the small releases is counted without its encoder, as by Kyutai."""
    sizes = {"flow_lm": 0, "mimi": 0}
    for name, shape in shapes(config(kind)).items():
        if kind == "published" or not name.startswith(("mimi.encoder", "mimi.downsample")):
            sizes[name.partition(".")[0]] += prod(shape)
    assert sizes["flow_lm"] / 1e6 == pytest.approx(language_model, abs=0.06)
    assert sizes["mimi"] / 1e6 == pytest.approx(codec, abs=0.06)
