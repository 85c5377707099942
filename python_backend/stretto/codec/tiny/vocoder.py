"""Source-filter vocoder: log-mel frames to samples, window by window without seams.

    mel ─┬─► pitch trunk (float64) ─► pitch, voicing ─► pulses ─┐
         │                                          noise ──────┤
         └─► filter trunk ─► two log gains per frame ─► minimum-phase filters ─► overlap-add ─► pcm

The pitch is computed in float64 because its integral is the phase of the pulses. Rounding that depends on the window
shape would accumulate over an utterance and be audible in the highest harmonics. Nothing else depends on earlier
frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stretto.codec.tiny import excitation, filters
from stretto.codec.tiny.mel import FFT_SIZE, HOP, NUM_MELS, band_centres
from stretto.codec.tiny.network import Trunk

LOUDEST = 6.0  # bound of a log gain relative to the mel frame
QUIETEST = -12.0
PULSE_GAIN, NOISE_GAIN = -2.0, -2.5  # a magnitude spectrum of windowed white noise is about exp(2.5) times its rms
VOICING_SLOPE = 0.5


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of the two trunks; look-ahead in mel frames."""

    channels: int = 192
    blocks: int = 5
    pitch_channels: int = 64
    pitch_blocks: int = 4
    lookahead: int = 3
    mel_mean: float = -4.0
    mel_deviation: float = 2.5


def band_interpolation() -> Tensor:
    """Return weights [NUM_MELS, FFT_SIZE // 2 + 1] that interpolate band values linearly at each FFT bin."""
    bins, centres = torch.arange(FFT_SIZE // 2 + 1.0), band_centres()
    above = torch.searchsorted(centres, bins, right=True).clamp(1, NUM_MELS - 1)
    low, high = centres[above - 1], centres[above]
    weight = ((bins - low) / (high - low)).clamp(0, 1)
    table = torch.zeros(NUM_MELS, len(bins))
    columns = torch.arange(len(bins))
    table[above - 1, columns] = 1 - weight
    table[above, columns] += weight
    return table


class Vocoder(nn.Module):
    """Weights and tables, all on the decoding device, because a CUDA graph cannot copy from the host.

    The caller carries the phase. A sample of mel frame t depends on mel frames [t - left, t + right], and on the phase
    at any one sample: on the filters of frames [t - FRAMES_BACK, t + FRAMES_AHEAD] and on the pitch of frames
    [t - SOURCE_FRAMES_BACK, t + FRAMES_AHEAD], each with the context of its trunk.
    """

    interpolation: Tensor
    noise: Tensor
    neighbours: Tensor
    offset: Tensor  # offset of the log gains of pulses and noise, [2, 1, 1]

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.config = config
        bins = FFT_SIZE // 2 + 1
        self.filter_trunk = Trunk(NUM_MELS, config.channels, 2 * bins, config.blocks, config.lookahead)
        self.pitch_trunk = Trunk(NUM_MELS, config.pitch_channels, 2, config.pitch_blocks, config.lookahead)
        tables = {
            "interpolation": band_interpolation(),
            "noise": excitation.noise_table(),
            "neighbours": excitation.neighbour_weights(),
            "offset": torch.tensor([PULSE_GAIN, NOISE_GAIN])[:, None, None],
        }
        for name, table in tables.items():
            self.register_buffer(name, table, persistent=False)
        self.left = max(
            filters.FRAMES_BACK + self.filter_trunk.left, filters.SOURCE_FRAMES_BACK + self.pitch_trunk.left
        )
        self.right = filters.FRAMES_AHEAD + config.lookahead

    def pitch(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Return log pitch in Hz and voicing logit, [B, T] each, in the dtype of the pitch trunk."""
        log_hz, voicing = self.pitch_trunk(self._normalise(mel)).unbind(-1)
        return log_hz + 5.0, voicing  # e ** 5 Hz is between the two voices

    def log_gains(self, mel: Tensor) -> Tensor:
        """Return log gains of pulses and noise, [B, 2, T, bins], in the dtype of the filter trunk."""
        residual = self.filter_trunk(self._normalise(mel)).unflatten(-1, (2, -1)).transpose(1, 2)
        envelope = (mel @ self.interpolation)[:, None]
        return (envelope + self.offset + residual).clamp(QUIETEST + NOISE_GAIN, LOUDEST)

    def render(self, gains: Tensor, pitch_hz: Tensor, phase: Tensor, voicing: Tensor, position: Tensor) -> Tensor:
        """Return samples [B, n] in the dtype of the gains.

        Args:
            gains: Log gains, [B, 2, T, bins].
            pitch_hz: Pitch in Hz, float64 [B, n].
            phase: Phase in cycles, float64 [B, n].
            voicing: Voicing in [0, 1], [B, T].
            position: Absolute position of the first sample, int64 [B].
        """
        audible = excitation.upsample(voicing.to(gains.dtype), self.neighbours)
        voiced = excitation.pulses(phase, pitch_hz).to(gains.dtype) * audible
        steps = torch.arange(phase.shape[1], device=phase.device)
        noise = self.noise[(position[:, None] + steps) % excitation.NOISE_PERIOD].to(gains.dtype)
        return filters.apply_filters(torch.stack([voiced, noise], 1), filters.minimum_phase(gains))

    def forward(self, mel: Tensor, first: int, last: int, position: Tensor, phase: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples [B, (last - first) * HOP] of mel frames [first, last), and the phase [B] after them.

        Args:
            mel: Mel frames with all available context, float64 [B, T, NUM_MELS].
            first: First frame to render.
            last: Frame after the last.
            position: Position of the first sample of frame `first`, int64 [B].
            phase: Phase at that sample in cycles, float64 [B].
        """
        # The remaining context was needed by the trunks only.
        heard = slice(max(0, first - filters.FRAMES_BACK - 1), last + filters.FRAMES_AHEAD)
        start, stop = (first - heard.start) * HOP, (last - heard.start) * HOP
        log_hz, logit = (each[:, heard] for each in self.pitch(mel))
        gains = self.log_gains(mel.to(self.interpolation.dtype))[:, :, heard]
        pitch_hz = log_hz.exp().clamp(excitation.LOWEST_HZ, excitation.HIGHEST_HZ)
        pitch_hz = excitation.upsample(pitch_hz, self.neighbours)
        turned = excitation.cycles(pitch_hz)
        phases = turned + (phase - turned[:, start])[:, None]
        voicing = (VOICING_SLOPE * logit + 0.5).clamp(0, 1)
        pcm = self.render(gains, pitch_hz, phases[:, :-1], voicing, position - start)
        return pcm[:, start:stop], phases[:, stop]

    def _normalise(self, mel: Tensor) -> Tensor:
        return (mel - self.config.mel_mean) / self.config.mel_deviation
