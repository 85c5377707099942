from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stretto.codecs.streaming import (
    Conv,
    Layer,
    Upsample,
    context,
    dac_layers,
    reach,
    same,
    samples_per_frame,
    tail_samples,
)

CAUSAL = [Conv(7, 6), Upsample(10, 5, 0, 5), Conv(3, 2), Upsample(4, 2, 0, 2), Conv(7, 6)]
LOPSIDED = [Conv(5, 1, 2), Upsample(6, 3, 1, 2), Conv(4, 0), Upsample(5, 4, 0, 1)]


def run(layers: Sequence[Layer], frames: Tensor) -> Tensor:
    """Run the layers with positive random kernels, so that no effects cancel."""
    torch.manual_seed(0)
    signal = frames[None, None]
    for layer in layers:
        kernel = torch.rand(1, 1, layer.kernel, dtype=torch.float64) + 0.1
        if isinstance(layer, Conv):
            span = layer.dilation * (layer.kernel - 1)
            padded = F.pad(signal, (layer.before, span - layer.before))
            signal = F.conv1d(padded, kernel / layer.kernel, dilation=layer.dilation)
        else:
            signal = F.conv_transpose1d(signal, kernel, stride=layer.stride)
            signal = signal[..., layer.before : signal.shape[2] - layer.after]
    return signal[0, 0]


def lookahead_samples(layers: Sequence[Layer]) -> int:
    """Return, by the formula, how many samples before its own a frame affects."""
    sample = 0
    while reach(layers, sample - 1, sample - 1)[1] >= 0:
        sample -= 1
    return -sample


def measured(layers: Sequence[Layer], frames: int) -> tuple[int, int, int]:
    """Measure context (left, right) and look-ahead in samples by changing a single frame."""
    quiet = torch.zeros(frames, dtype=torch.float64)
    loud, middle, hop = quiet.clone(), frames // 2, samples_per_frame(layers)
    loud[middle] = 1
    heard = (run(layers, loud) - run(layers, quiet)).nonzero().flatten()
    before, after = middle * hop - int(heard[0]), int(heard[-1]) - (middle + 1) * hop + 1
    return -(-after // hop), -(-before // hop), before


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((8, 5, 4, 2), (10, 10)),
        ((8, 8, 4, 2), (10, 10)),
        ((8, 7, 5, 3), (10, 10)),
        ((8, 4, 4, 2), (11, 11)),
        ((8, 5, 4, 2, 3), (10, 10)),
        ((2, 4, 5, 8), (30, 30)),
    ],
)
@pytest.mark.parametrize("output_padding", [False, True])
def test_receptive_fields_match_the_published_codecs(
    ratios: tuple[int, ...], expected: tuple[int, int], output_padding: bool
) -> None:
    assert context(dac_layers(ratios, output_padding)) == expected


@pytest.mark.parametrize(("ratios", "expected"), [((8, 5, 4, 2), 3141), ((8, 8, 4, 2), 4757)])
def test_lookahead_is_exact_to_the_sample(ratios: tuple[int, ...], expected: int) -> None:
    assert lookahead_samples(dac_layers(ratios, output_padding=False)) == expected


@pytest.mark.parametrize(
    "layers",
    [dac_layers(r, p) for r in ((8, 5, 4, 2), (8, 4, 4, 2), (2, 4, 5), (3,)) for p in (False, True)]
    + [CAUSAL, LOPSIDED, [same(3), Upsample(8, 4, 2, 2)]],
)
def test_receptive_field_formula_matches_measurement(layers: Sequence[Layer]) -> None:
    assert measured(layers, 71) == (*context(layers), lookahead_samples(layers))


@pytest.mark.parametrize(
    ("layers", "tail"),
    [
        (dac_layers((8, 5, 4, 2), output_padding=False), 8),
        (dac_layers((8, 5, 4, 2), output_padding=True), 0),
        (dac_layers((8, 8, 4, 2), output_padding=False), 0),
        (CAUSAL, 0),
    ],
)
@pytest.mark.parametrize("frames", [1, 2, 30])
def test_output_length_is_whole_frames_minus_the_tail(layers: Sequence[Layer], tail: int, frames: int) -> None:
    assert tail_samples(layers) == tail
    assert len(run(layers, torch.ones(frames, dtype=torch.float64))) == frames * samples_per_frame(layers) - tail


def test_causal_decoder_has_no_lookahead() -> None:
    assert context(CAUSAL)[1] == lookahead_samples(CAUSAL) == 0
