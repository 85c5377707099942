import pytest
import torch

from benchmarks.decoder import random_codes
from scripts.onnx_graphs.tiny_graph import TinyGraph, erf
from stretto.codecs.base import Window
from tests.codecs.conftest import make_codec


def test_sine_series_erf_matches_torch() -> None:
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    assert (erf(x) - torch.erf(x)).abs().max() <= 1e-14


@pytest.mark.parametrize(("left", "frames", "right"), [(0, 1, 0), (0, 4, 1), (8, 5, 1), (8, 3, 0)])
@torch.inference_mode()
def test_onnx_graph_matches_the_codec_within_the_window(left: int, frames: int, right: int) -> None:
    codec = make_codec()
    codes, first = random_codes(codec, 2, left + frames + right), torch.tensor([left, 50])
    state = torch.tensor([[0.25], [0.9]], dtype=torch.float64)
    expected, next_state = codec.decode(Window(codes, left, right, first, state))
    last = left + frames
    pcm, graph_state = TinyGraph(codec)(codes, torch.tensor([left]), torch.tensor([last]), first, state)
    hop = codec.spec.samples_per_frame
    assert pcm.shape == (2, codes.shape[2] * hop)
    assert (pcm[:, left * hop : last * hop].clamp(-1, 1) - expected).abs().max() <= 1e-5
    assert (graph_state - next_state).abs().max() <= 1e-10
    assert expected.abs().max() > 1e-3
