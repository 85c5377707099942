"""Mix-in for models that generate frames as latents and read them as embeddings."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from vllm import envs
from vllm.config import VllmConfig

from stretto.cpu_backend.products import activate_rows as activate_rows
from stretto.engine.kernels.gpu.linear import use_row_invariant_products
from stretto.engine.kernels.gpu.products import use_fused_operators
from stretto.engine.models.multi_stream import MultiStreamMixin
from stretto.engine.reply_rules import SegmentRules
from stretto.engine.worker.batch_plan import SolverPlan as SolverPlan
from stretto.engine.worker.predictors import (
    GuidedLatentPredictor,
    LatentPredictor,
    LatentReadout,
    StopHead,
)
from stretto.errors import CheckpointError

LARGEST = 1e9  # magnitude of latents; their squares are finite in float32


def silu(x: torch.Tensor) -> torch.Tensor:
    """Return x * sigmoid(x) for x [N, H]; the result for a row is bit-identical in every batch."""
    return activate_rows(F.silu, x)


class SolverTable:
    """Per-step values of a solver, for all step counts up to the largest.

    A solver with n steps has n rows. Steps are looked up on the device, so that a solver's launches do not depend on
    the rows' step counts.

    Args:
        values: Function that returns the per-step values of a solver with n steps, [n, ...].
        embed: Function applied once to the rows of all solvers together, or None.
    """

    def __init__(
        self,
        values: Callable[[int], torch.Tensor],
        steps: range,
        embed: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ):
        rows = torch.cat([values(number) for number in range(1, steps.stop)])
        self._rows = rows if embed is None else embed(rows)

    def at(self, step: int, steps: torch.Tensor) -> torch.Tensor:
        """Return the values [N, ...] of step number `step` for rows whose solvers have `steps` [N] steps.

        If a solver has no such step, the values for its last step are returned.
        """
        last = steps * (steps + 1) // 2 - 1
        return self._rows[torch.minimum(last - steps + 1 + step, last)]


class EndOfSpeech(nn.Module):
    """Weight [H] and optional bias [1] of the end-of-speech logit, replicated on all tensor-parallel ranks."""

    def __init__(self, width: int, has_bias: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(1), requires_grad=False) if has_bias else None


class LatentMixin(MultiStreamMixin):
    """Mix-in for a model whose audio rows contain a latent (as words) instead of codes.

    A subclass defines `embed_latents` and `latent_predictor`, and `embed_voice` if prompts contain latents of
    recordings. If no single id ends the speech, it also defines `readout_of`. In all of these, a row's matrix products
    must be bit-identical in every batch. On a CPU, this holds for vLLM's linear layers, but not for torch's own layers.
    On a GPU, it holds for both if vLLM is batch-invariant; `kernels/gpu/linear.py` then computes vLLM's linear layers.

    Attributes:
        has_end, end_has_bias: True if the checkpoint has a weight, or a bias, for the end-of-speech logit.
    """

    has_end = True
    end_has_bias = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        if self.family.layout.latents is None:
            raise CheckpointError(f"{self.family.name}: expected a family whose frames are latents")
        self.num_words = self.family.layout.latents.num_words
        self.voice_ids = self.family.layout.latents.voice_ids
        if self.has_end:
            self.end_of_speech = EndOfSpeech(vllm_config.model_config.get_hidden_size(), self.end_has_bias)

    def embed_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of latents, float32 [N, D]."""
        raise NotImplementedError

    def embed_voice(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [N, H] of a recording's latents, float32 [N, D]."""
        raise NotImplementedError

    def latent_predictor(self) -> LatentPredictor | GuidedLatentPredictor:
        """Return a predictor of the next latent that uses the model's weights."""
        raise NotImplementedError

    @torch.inference_mode()
    def latent_readout(self, rules: SegmentRules) -> LatentReadout:
        """Return the head of stream 0 and the latent predictor.

        On a GPU, everything in the model that vLLM does not compile calls fused operators from then on. If results may
        not depend on the batch, linear layers use our own products.
        """
        if self.model.embed_tokens.get_parameter("weight").device.type != "cpu":
            use_fused_operators(self)
            if envs.VLLM_BATCH_INVARIANT:
                use_row_invariant_products(self)
        return self.readout_of(self.latent_predictor(), rules)

    def readout_of(self, predictor: LatentPredictor | GuidedLatentPredictor, rules: SegmentRules) -> LatentReadout:
        """Return the output heads for a predictor. Stream 0 has two ids: a frame, and a frame in which speech ends."""
        weight = self.end_weight()
        bias = self.end_of_speech.bias
        stop = StopHead(weight, weight.new_zeros(1) if bias is None else bias.data, rules)
        return LatentReadout(stop, predictor, len(weight))

    def end_weight(self) -> torch.Tensor:
        """Return the weight of the end-of-speech head, whose last dimension is that of the hidden states."""
        return self.end_of_speech.weight.data

    def embed_rows(
        self, rows: torch.Tensor, out: torch.Tensor, latent_rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Write the embeddings of `rows` [N, 1 + D] to `out` [N, H].

        A row's latent is embedded or, if the row has none, its id on stream 0. A latent that is not finite makes its
        reply fail. It is embedded as 0 nevertheless, because the KV blocks are reused. Attention multiplies unused
        positions of a block by 0, which does not remove a NaN.

        Args:
            latent_rows: Indices of all rows that may have a latent, int64 [n]; None if any row may have one.
        """
        super().embed_rows(rows[:, :1], out)
        if latent_rows is None:
            return self._embed_latents(rows, out)
        if len(latent_rows):
            out[latent_rows] = self._embed_latents(rows[latent_rows], out[latent_rows])
        return out

    def _embed_latents(self, rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Replace the embeddings in `out` [N, H] of those `rows` that have a latent, and return `out`."""
        latents = rows[:, 1 : 1 + self.num_words].contiguous().view(torch.float32)
        latents = latents.nan_to_num(0.0, 0.0, 0.0).clamp(-LARGEST, LARGEST)
        kinds = [(self.family.layout.audio[0], self.embed_latents)]
        if self.voice_ids:
            kinds.append((self.voice_ids, self.embed_voice))
        for ids, embed in kinds:
            is_kind = have_ids(rows, ids)
            if rows.device.type != "cpu":  # launches must not depend on the rows, as CUDA graphs require
                out.copy_(torch.where(is_kind[:, None], embed(latents).to(out.dtype), out))
                continue
            (at,) = is_kind.nonzero(as_tuple=True)
            if len(at):
                out[at] = embed(latents[at]).to(out.dtype)
        return out


def have_ids(rows: torch.Tensor, ids: range) -> torch.Tensor:
    """Return True for rows [N, S] whose id on stream 0 is in `ids`, bool [N]."""
    return (rows[:, 0] >= ids.start) & (rows[:, 0] < ids.stop)
