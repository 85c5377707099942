"""K-means and the quantiser's tables."""

import torch

from training.tiny.fit_codec import fit, k_means, nearest


def test_k_means_finds_well_separated_centres() -> None:
    torch.manual_seed(0)
    centres = 10 * torch.randn(4, 8)
    points = (centres[:, None] + 0.1 * torch.randn(4, 50, 8)).flatten(0, 1)
    found = k_means(points, 16, 20)
    assert (points - found[nearest(points, found)]).norm(dim=1).max() < 1.5


def test_each_codebook_reduces_the_residual() -> None:
    torch.manual_seed(0)
    frames = torch.randn(3000, 256) @ torch.randn(256, 256) * 0.1
    tables = fit(frames)
    residual = (frames - tables["mu"]) @ tables["P"]
    sizes = [residual.norm()]
    for codebook in tables["cb"]:
        residual = residual - codebook[nearest(residual, codebook)]
        sizes.append(residual.norm())
    assert sizes == sorted(sizes, reverse=True)
