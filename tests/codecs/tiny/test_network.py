import torch

from stretto.codecs.tiny.codec import HOPS, Trunk


def test_trunk_is_causal_and_continues_from_its_state() -> None:
    torch.manual_seed(0)
    trunk = Trunk(5, 8, 3, 2).double()
    frames = torch.randn(1, 20, 5, dtype=torch.double)
    start = torch.zeros(1, trunk.state_size, dtype=torch.double)
    whole, _ = trunk(frames, start)
    assert whole.shape == (1, 20 * HOPS, 3)
    head, state = trunk(frames[:, :7], start)
    tail, _ = trunk(frames[:, 7:], state)
    assert (torch.cat([head, tail], 1) - whole).abs().max() < 1e-12
    frames[:, 7:] += 1
    assert torch.equal(trunk(frames, start)[0][:, : 7 * HOPS], whole[:, : 7 * HOPS])
