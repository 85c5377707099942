import torch

from stretto.codecs.tiny.codec import ResidualVQ
from tests.codecs.conftest import SMALL


def make_quantiser() -> ResidualVQ:
    torch.manual_seed(0)
    quantiser = ResidualVQ(SMALL)
    quantiser.codebooks.normal_()
    quantiser.codebooks[1:] *= 0.4
    return quantiser


def test_residual_vq_encode_takes_nearest_vectors_in_turn() -> None:
    quantiser = make_quantiser()
    vectors = torch.randn(9, SMALL.latent)
    codes = quantiser.encode(vectors)
    for t in range(9):
        residual = vectors[t]
        for k in range(SMALL.num_codebooks):
            nearest = min(
                range(SMALL.codebook_size), key=lambda v: (residual - quantiser.codebooks[k, v]).norm().item()
            )
            assert codes[t, k] == nearest
            residual = residual - quantiser.codebooks[k, nearest]


def test_residual_vq_decode_sums_the_vectors() -> None:
    quantiser = make_quantiser()
    codes = torch.randint(SMALL.codebook_size, (2, SMALL.num_codebooks, 4))
    vectors = quantiser.decode(codes)
    assert vectors.shape == (2, 4, SMALL.latent)
    for b in range(2):
        for t in range(4):
            expected = sum(quantiser.codebooks[k, codes[b, k, t]].double() for k in range(SMALL.num_codebooks))
            assert torch.allclose(vectors[b, t], expected, atol=1e-12)


def test_more_codebooks_reduce_the_error() -> None:
    quantiser = make_quantiser()
    vectors = quantiser.decode(torch.randint(SMALL.codebook_size, (1, SMALL.num_codebooks, 50)))[0].float()
    vectors += 0.1 * torch.randn(50, SMALL.latent)
    codes = quantiser.encode(vectors).T[None]
    errors = [(quantiser.decode(codes[:, :k])[0] - vectors).norm() for k in (1, 2, 3)]
    assert errors[0] > errors[1] > errors[2]
