import pytest
import torch

from scripts.onnx_graphs.tiny_graph import TinyGraph, erf
from stretto.codecs.base import Window
from stretto.testing.codec_streams import random_codes
from tests.codecs.conftest import make_codec


def test_sine_series_erf_matches_torch() -> None:
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    assert (erf(x) - torch.erf(x)).abs().max() <= 1e-14


@pytest.mark.parametrize(("earlier", "frames"), [(0, 1), (0, 4), (8, 5)])
@torch.inference_mode()
def test_onnx_graph_matches_the_codec_after_any_state(earlier: int, frames: int) -> None:
    codec = make_codec()
    codes, first, state = random_codes(codec, 2, earlier + frames), torch.tensor([0, 50]), codec.initial_state(2)
    if earlier:
        _, state = codec.decode(Window(codes[:, :, :earlier], 0, 0, first, state))
    first = first + earlier
    expected, next_state = codec.decode(Window(codes[:, :, earlier:], 0, 0, first, state))
    pcm, graph_state = TinyGraph(codec)(codes[:, :, earlier:], first, state)
    assert (pcm.clamp(-1, 1) - expected).abs().max() <= 1e-4
    assert expected.abs().max() > 1e-3
    names = ("trunk", "pitch trunk", "pitch", "phase", "pulses", "rest")
    parts = [each.split(codec.decoder.sizes, 1) for each in (graph_state, next_state)]
    differences = {name: float((a - b).abs().max()) for name, a, b in zip(names, *parts, strict=True)}
    assert differences["phase"] <= 1e-10  # errors in the phase would add up over the utterance
    assert differences["pitch"] <= 1e-8
    assert max(differences.values()) <= 1e-3, differences
