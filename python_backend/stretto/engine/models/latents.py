"""Mix-in of models that generate their frames as latents and read them back as embeddings."""

import torch
from torch import nn
from vllm.config import VllmConfig

from stretto.engine.models.multi_stream import MultiStreamMixin
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.predictors import (
    FirstHead,
    GuidedLatentPredictor,
    LatentFeedback,
    LatentPredictor,
    LatentReadout,
    PairedLatentPredictor,
    StopHead,
    WeightRows,
)
from stretto.errors import CheckpointError


def silu(x: torch.Tensor) -> torch.Tensor:
    """Return x * sigmoid(x) for x [N, H] with H a multiple of 8.

    vLLM's kernel computes each row by itself. torch's computes the last numbers of a batch, or of a thread's part of
    it, in another way, so the bits of a row depend on its place in the batch.
    """
    out = torch.empty_like(x)
    torch.ops._C.silu_and_mul(out, torch.cat([x, torch.ones_like(x)], -1))
    return out


class EndOfSpeech(nn.Module):
    """Weight [H] and optional bias [1] of the logit that a frame is the last; the same on all tensor-parallel ranks."""

    def __init__(self, width: int, has_bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(1), requires_grad=False) if has_bias else None


class LatentMixin(MultiStreamMixin):
    """Mix-in that reads the words of a row as a latent, and generates the next one.

    A subclass defines `embed_latents` and `latent_predictor`, and `embed_voice` if prompts have latents of recordings.
    With `LatentSpec.marks`, it also defines `latent_feedback` and `state_of_row`.
    Their matrix products must give a row the same bits in every batch. On a CPU, this holds for vLLM's linear layers,
    but not for torch's.

    Attributes:
        end_has_bias: True if the checkpoint has a bias of the logit for speech ending.
    """

    end_has_bias = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if self.family.layout.latents is None:
            raise CheckpointError(f"{self.family.name}: expected a family whose frames are latents")
        self.num_words = self.family.layout.latents.num_words
        self.voice_ids = self.family.layout.latents.voice_ids
        if not self.family.layout.latents.marks:
            self.end_of_speech = EndOfSpeech(vllm_config.model_config.get_hidden_size(), self.end_has_bias)

    def embed_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of latents, float32 [N, D]."""
        raise NotImplementedError

    def embed_voice(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of latents of a recording, float32 [N, D]."""
        raise NotImplementedError

    def latent_predictor(self) -> LatentPredictor | GuidedLatentPredictor | PairedLatentPredictor:
        """Return the predictor of the next latent, made of the model's weights."""
        raise NotImplementedError

    def latent_feedback(self) -> LatentFeedback:
        """Return the network that reads decoded audio, for a family with `LatentSpec.marks`."""
        raise NotImplementedError

    def state_of_row(self, token_id: int) -> torch.Tensor:
        """Return the hidden state [H] of a request whose only row is this id, for a family with `LatentSpec.marks`."""
        raise NotImplementedError

    def latent_readout(self, rules: SegmentRules) -> LatentReadout:
        """Return the head of stream 0 and the latent predictor."""
        if rules.marks:
            heads = FirstHead(self.first_rows(rules), rules)
            state = self.state_of_row(rules.marks[0])
            return LatentReadout(heads, self.latent_predictor(), self.latent_feedback(), state)
        weight, bias = self.end_weight(), self.end_of_speech.bias
        stop = StopHead(weight, weight.new_zeros(1) if bias is None else bias.data, rules)
        return LatentReadout(stop, self.latent_predictor())

    def first_rows(self, rules: SegmentRules) -> torch.Tensor:
        """Return the rows [n, H] of the ids of stream 0 in audio: of `audio_head`, or of the embedding table."""
        if self.family.has_audio_head:
            return self.audio_head.weight.data
        ids = torch.tensor([*rules.audio_ids(0), *rules.drawn_ends_of_audio])
        return WeightRows(self.model.embed_tokens).gather(
            ids.to(self.model.embed_tokens.get_parameter("weight").device)
        )

    def end_weight(self) -> torch.Tensor:
        """Return the weight of the logit for speech ending, as wide as the states that the model returns."""
        return self.end_of_speech.weight.data

    def embed_rows(self, rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Write the embedding of stream 0, or of a latent, to `out` [N, H] for `rows` [N, 1 + D]."""
        latents = rows[:, 1 : 1 + self.num_words].contiguous().view(torch.float32)
        super().embed_rows(rows[:, :1], out)
        kinds = [(self.family.layout.audio[0], self.embed_latents)]
        if self.voice_ids:
            kinds.append((self.voice_ids, self.embed_voice))
        for kind, embed in kinds:
            (at,) = have_ids(rows, kind).nonzero(as_tuple=True)
            if len(at):
                out[at] = embed(latents[at]).to(out.dtype)
        return out


def have_ids(rows: torch.Tensor, kind: range) -> torch.Tensor:
    """Return True for rows [N, S] whose id on stream 0 is in `kind`, bool [N]."""
    return (rows[:, 0] >= kind.start) & (rows[:, 0] < kind.stop)
