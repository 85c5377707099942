"""Comparison of the sizes in benchmarks/sizing.py with those of a family's vocabulary."""

from typing import Any

from benchmarks.sizing import BACKBONES


def assert_shape_of(name: str, vocabulary: Any, num_layers: int) -> None:
    """Assert that the backbone called `name` has the sizes of a published vocabulary."""
    (backbone,) = [backbone for backbone in BACKBONES if backbone.name == name]
    vocab_size = getattr(vocabulary, "vocab_size", None) or vocabulary.layout.vocab_size
    assert (backbone.vocabulary, backbone.layers) == (vocab_size, num_layers)
    spec = getattr(vocabulary, "depth", None)
    depth = backbone.depth
    assert (spec is None) == (depth is None)
    if depth is None:
        return
    assert (depth.hidden, depth.layers, depth.kv_heads, depth.head_dim, depth.heads, depth.inner) == (
        *(spec.hidden, spec.num_layers, spec.num_kv_heads, spec.head_dim, spec.num_heads, spec.intermediate),
    )
    assert (depth.passes, depth.columns) == (len(vocabulary.layout.audio) - 1, len(vocabulary.layout.audio[-1]))
    assert depth.sets == max(spec.num_sets, 1)
