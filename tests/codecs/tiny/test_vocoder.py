import pytest
import torch

from stretto.codecs.tiny.codec import NUM_MELS, Vocoder, VocoderConfig, band_interpolation

FIRST, LAST = 60, 64


def speak(vocoder: Vocoder, mel: torch.Tensor) -> torch.Tensor:
    """Return pcm of a few frames in the middle, with the phase fixed at their first sample."""
    phase = torch.full((1,), 0.3, dtype=torch.double)
    return vocoder(mel, FIRST, LAST, torch.zeros(1, dtype=torch.long), phase)[0][0]


@pytest.mark.parametrize(
    "config",
    [
        VocoderConfig(channels=16, blocks=3, pitch_channels=8, pitch_blocks=2, lookahead=2),
        VocoderConfig(channels=16, blocks=1, pitch_channels=8, pitch_blocks=3, lookahead=1),
    ],
)
def test_vocoder_receptive_field_matches_its_context(config: VocoderConfig) -> None:
    torch.manual_seed(0)
    vocoder = Vocoder(config).double().requires_grad_(False)
    vocoder.pitch_trunk.leave.weight *= 2  # a pitch that moves, a voicing that does not saturate
    mel = torch.randn(1, 120, NUM_MELS, dtype=torch.double) - 4
    clean = speak(vocoder, mel)

    def change(at: int) -> float:
        disturbed = mel.clone()
        disturbed[0, at] += 3 * torch.randn(NUM_MELS, dtype=torch.double)
        return (speak(vocoder, disturbed) - clean).abs().max().item()

    first, last = FIRST - vocoder.left, LAST - 1 + vocoder.right
    # the remaining differences are rounding of the running phase
    assert max(change(at) for at in (first - 1, first - 2, first - 20, last + 1, last + 2, last + 20)) < 1e-10
    assert change(first) > 1e-9
    assert change(last) > 1e-9


def test_spectral_envelope_is_interpolated_between_band_centres() -> None:
    table = band_interpolation()
    assert torch.allclose(table.sum(0), torch.ones(table.shape[1]), atol=1e-6)
    assert (table >= 0).all()
    assert ((table > 0).sum(0) <= 2).all()
