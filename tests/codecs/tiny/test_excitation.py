import math

import torch

from stretto.codecs.tiny import codec as tiny
from stretto.codecs.tiny.codec import HIGHEST_HARMONIC_HZ, HOP, SAMPLE_RATE


def upsample(frames: torch.Tensor) -> torch.Tensor:
    edged = torch.cat([frames[:, :1], frames, frames[:, -1:]], 1)
    return tiny.upsample(edged, tiny.neighbour_weights())


def test_pulses_equal_the_sum_of_their_harmonics() -> None:
    pitch = torch.tensor([[50.0, 97.3, 140.0, 500.0]]).double().repeat_interleave(25, dim=1)
    phase = torch.linspace(-3, 3, 100).double()[None]
    number = HIGHEST_HARMONIC_HZ / pitch
    expected = torch.zeros_like(phase)
    for k in range(1, 222):
        expected += (number - k + 1).clamp(0, 1) * (2 * math.pi * k * phase).cos()
    assert torch.allclose(tiny.pulses(phase, pitch), expected, atol=1e-9)


def test_pulses_are_continuous_when_a_harmonic_leaves_the_band() -> None:
    phase = torch.linspace(0, 1, 100).double()[None]
    edge = HIGHEST_HARMONIC_HZ / 60
    below, above = (tiny.pulses(phase, torch.full_like(phase, edge + d)) for d in (-1e-9, 1e-9))
    assert (below - above).abs().max() < 1e-6


def test_pulse_train_peaks_at_whole_cycles_with_the_power_of_its_harmonics() -> None:
    pitch = torch.full((1, SAMPLE_RATE), 125.0).double()
    phase = tiny.cycles(pitch)[:, :-1]
    train = tiny.pulses(phase, pitch)[0]
    assert train[:: SAMPLE_RATE // 125].min() == train.max()
    assert abs(train.square().mean() / (HIGHEST_HARMONIC_HZ / 125 / 2) - 1) < 0.02


def test_phase_is_the_sum_of_the_pitch_modulo_one_cycle() -> None:
    pitch = 50 + 450 * torch.rand(2, 40 * HOP, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.pad((pitch / SAMPLE_RATE).cumsum(1), (1, 0))
    missing = expected - tiny.cycles(pitch)
    assert (missing - missing.round()).abs().max() < 1e-11
    assert missing[:, ::HOP].unique().numel() > 40
    assert tiny.cycles(pitch)[:, 0].tolist() == [0, 0]


def test_phase_increments_do_not_depend_on_earlier_frames() -> None:
    """Each cut sums in another order. There are more frames than int64 can hold cycles of."""
    pitch = (50 + 450 * torch.rand(1, 40, dtype=torch.double)).repeat(1, 1000).repeat_interleave(HOP, 1)
    whole = tiny.cycles(pitch)[0, ::HOP]
    for cut in (1, 17, 30_000):
        head, tail = (tiny.cycles(part)[0, ::HOP] for part in pitch.split([cut * HOP, (40_000 - cut) * HOP], 1))
        assert torch.equal((head[-1] + tail) % 1.0, whole[cut:])


def test_upsampling_reaches_frame_values_at_frame_centres() -> None:
    up = upsample(torch.tensor([[1.0, 3.0, 2.0]]))[0]
    assert up.shape == (3 * HOP,)
    assert torch.allclose(up[HOP - 1 : HOP + 1].mean(), torch.tensor(2.0))
    assert torch.allclose(up[HOP + HOP // 2 - 1 : HOP + HOP // 2 + 1], torch.tensor(3.0), atol=0.01)


def test_upsampling_does_not_depend_on_earlier_frames() -> None:
    frames = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0))
    whole, part = upsample(frames)[:, -9 * HOP :], upsample(frames[:, -10:])[:, HOP:]
    assert torch.equal(whole, part)


def test_noise_is_white_and_fixed() -> None:
    noise = tiny.noise_table()
    assert torch.allclose(noise[:3], torch.tensor([1.3278, -0.2372, -1.6405]), atol=1e-4)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.square().mean() - 1) < 0.01
    spectrum = torch.fft.rfft(noise).abs().square()
    parts = spectrum[1:].unflatten(0, (16, -1)).mean(1) / spectrum.mean()
    torch.testing.assert_close(parts, torch.ones(16), rtol=0, atol=0.1)
