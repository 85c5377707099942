"""Speech tokens to a mel spectrogram.

tokens ─► conformer ─► regulator ─► μ [B, M, T]
noise [M, T] ─► 10 Euler steps along estimator(state, μ, speaker, prompt) ─► mel [B, M, T]
"""

from torch import Tensor, nn

from stretto.codec.cosyvoice.matching import Matching
from stretto.codec.glm4_voice.config import Glm4VoiceConfig
from stretto.codec.glm4_voice.conformer import BlockConformer, LengthRegulator


class Flow(nn.Module):
    """Flow with tensors named as in the published `flow.pt`."""

    def __init__(self, config: Glm4VoiceConfig) -> None:
        super().__init__()
        self.input_embedding = nn.Embedding(config.codebook_size, config.token_width)
        self.spk_embed_affine_layer = nn.Linear(config.speaker, config.mels)
        self.encoder = BlockConformer(config.token_width, config.encoder)
        self.encoder_proj = nn.Linear(config.encoder.width, config.mels)
        self.length_regulator = LengthRegulator(config.mels, config.regulator)
        self.decoder = Matching(config.mels, config.estimator, config.guidance)

    def goal(self, tokens: Tensor, frames: int) -> Tensor:
        """Return μ [B, M, frames] of tokens [B, T]."""
        return self.length_regulator(self.encoder_proj(self.encoder(self.input_embedding(tokens))), frames)

    def forward(self, tokens: Tensor, noise: Tensor, prompt: Tensor) -> Tensor:
        """Return mel [B, M, frames] of tokens [B, T] from noise [M, frames], continuing the prompt [B, M, n].

        The speaker vector is zero, so only its projection's bias remains.
        """
        goal = self.goal(tokens, noise.shape[1])
        known = nn.functional.pad(prompt, (0, noise.shape[1] - prompt.shape[2]))
        speaker = self.spk_embed_affine_layer.bias[:, None].expand_as(goal)
        return self.decoder(noise.expand_as(goal), goal, speaker, known)
