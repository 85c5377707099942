import torch

from stretto.codecs.tiny.codec import ResidualVQ


def make_quantiser() -> ResidualVQ:
    torch.manual_seed(0)
    quantiser = ResidualVQ(width=12, rank=5, num_codebooks=3, codebook_size=7)
    quantiser.mean.normal_()
    quantiser.basis.copy_(torch.linalg.qr(torch.randn(12, 5))[0])
    quantiser.codebooks.normal_()
    quantiser.codebooks[1:] *= 0.4
    return quantiser


def test_residual_vq_encode_takes_nearest_vectors_in_turn() -> None:
    quantiser = make_quantiser()
    stacked = torch.randn(9, 12)
    codes = quantiser.encode(stacked)
    for t in range(9):
        residual = (stacked[t] - quantiser.mean) @ quantiser.basis
        for k in range(3):
            nearest = min(range(7), key=lambda v: (residual - quantiser.codebooks[k, v]).norm().item())
            assert codes[t, k] == nearest
            residual = residual - quantiser.codebooks[k, nearest]


def test_residual_vq_decode_sums_the_vectors() -> None:
    quantiser = make_quantiser()
    codes = torch.randint(7, (2, 3, 4))
    stacked = quantiser.decode(codes)
    assert stacked.shape == (2, 4, 12)
    for b in range(2):
        for t in range(4):
            vector = sum(quantiser.codebooks[k, codes[b, k, t]] for k in range(3))
            expected = quantiser.basis @ vector + quantiser.mean
            assert torch.allclose(stacked[b, t].float(), expected, atol=1e-5)


def test_more_codebooks_reduce_the_error() -> None:
    quantiser = make_quantiser()
    stacked = quantiser.decode(torch.randint(7, (1, 3, 50)))[0].float() + 0.1 * torch.randn(50, 12)
    codes = quantiser.encode(stacked).T[None]
    errors = [(quantiser.decode(codes[:, :k])[0] - stacked).norm() for k in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
