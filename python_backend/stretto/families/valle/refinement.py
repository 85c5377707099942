"""VALL-E's non-autoregressive model, which fills in one codebook per pass over an utterance (arXiv 2301.02111).

    row        words … voice … start   c0  c1 … c(T-1)   end
    level 1    embeddings of codebook 0             ─► codebook 1 of every frame, the most likely code
    level 2    plus embeddings of codebook 1        ─► codebook 2
    …

Attention is bidirectional, so each frame of an utterance depends on all others. The scale and shift of every norm
depend on the level. Names follow ESPnet checkpoints (espnet2/speechlm/{core_lm,module}/valle.py in
https://github.com/espnet/espnet). Two details of ESPnet's code are reproduced: after each level, the embedding of the
start id is added to its row once more, and the row of the end id gets the embedding of the code sampled at its
position.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto.codecs.refinement import Passage
from stretto.errors import CheckpointError
from stretto.untrusted_files import UNPARSABLE, json_object
from stretto.weights.loading import load_strictly, read_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
EPS = 1e-5  # epsilon of the norms


@dataclass(frozen=True, slots=True)
class ValleShape:
    """Sizes in a checkpoint.

    Attributes:
        num_ids: Number of rows in the embedding table.
        codes: Id of code 0 of codebook 0; the ids of the other codebooks follow.
        end: Id after the last frame.
    """

    width: int
    num_heads: int
    num_layers: int
    max_rows: int
    num_ids: int
    num_codebooks: int
    codebook_size: int
    codes: int
    end: int

    def __post_init__(self) -> None:
        if (
            min(asdict(self).values()) < 0
            or self.num_codebooks < 2
            or not self.num_heads
            or self.width % self.num_heads
        ):
            raise ValueError(f"expected at least two codebooks and a width divisible by num_heads, got {self}")
        if self.codes + self.num_codebooks * self.codebook_size > self.num_ids or self.end >= self.num_ids:
            raise ValueError(f"expected the ids of all codes and the end to be below num_ids, got {self}")


class LevelNorm(nn.Module):
    """Layer norm of x [B, L, H] whose scale and shift are computed from the level's embedding [H]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.weight(level) * F.layer_norm(x, x.shape[-1:], eps=EPS) + self.bias(level)


class Attention(nn.Module):
    """Self-attention over the rows [B, L, H] for which `mask` [B, 1, 1, L] is True."""

    def __init__(self, shape: ValleShape) -> None:
        super().__init__()
        self._num_heads = shape.num_heads
        self.query, self.value, self.out = (nn.Linear(shape.width, shape.width) for _ in range(3))
        self.key = nn.Linear(shape.width, shape.width, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self._num_heads, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return self.out(F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a feed-forward layer with four times the width, each with pre-norm and a residual connection."""

    def __init__(self, shape: ValleShape) -> None:
        super().__init__()
        width = shape.width
        self.attn = Attention(shape)
        self.attn_ln = LevelNorm(width)
        self.mlp_ln = LevelNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, level: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.attn_ln(x, level), mask)
        return x + self.mlp(self.mlp_ln(x, level))


class ValleRefinement(nn.Module):
    """VALL-E's non-autoregressive model.

    Attributes:
        emb: Embeddings of all prompt ids and all codes, [V, H].
        head: Heads of the codebooks after the first, [(K - 1) * C, H].
    """

    def __init__(self, shape: ValleShape) -> None:
        super().__init__()
        # a prompt has one stream per codebook
        self.shape = shape
        self.num_streams = shape.num_codebooks
        self.num_ids = shape.num_ids
        self.codebook_size = shape.codebook_size
        self.max_rows = shape.max_rows
        num_levels = shape.num_codebooks - 1
        self.emb, self.pos_emb, self.level_emb = (
            nn.Embedding(size, shape.width) for size in (shape.num_ids, shape.max_rows, num_levels)
        )
        self.head = nn.Linear(shape.width, num_levels * shape.codebook_size, bias=False)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.num_layers))
        self.ln = LevelNorm(shape.width)

    @torch.inference_mode()
    def fill(self, passages: Sequence[Passage], on_codebook: Callable[[], None] | None = None) -> list[np.ndarray]:
        """Return the codes of each passage; shorter passages are padded and masked. See `Refinement.fill`."""
        # index of frame 0's row; row 0 of a prompt is not read
        firsts = [len(passage.prompt) - 1 for passage in passages]
        lasts = [
            first + len(passage.first_codes) for first, passage in zip(firsts, passages, strict=True)
        ]  # rows of the end
        rows = self.emb.weight.new_zeros(len(passages), max(lasts) + 1, self.shape.width)
        for row, passage, first, last in zip(rows, passages, firsts, lasts, strict=True):
            row[:first] = self.emb(self._ids(passage.prompt[1:])).sum(1)
            row[first:last] = self.emb(self._ids(passage.first_codes) + self.shape.codes)
            row[last] = self.emb.weight[self.shape.end]
        starts = torch.stack([row[first - 1] for row, first in zip(rows, firsts, strict=True)])
        ends = torch.tensor(lasts, device=rows.device)
        mask = (torch.arange(rows.shape[1], device=rows.device) <= ends[:, None])[:, None, None]
        codes = [[passage.first_codes] for passage in passages]
        for level in range(1, self.shape.num_codebooks):
            ids = self._most_likely(rows, level, mask)
            for at, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
                found = ids[at, first : last + 1]
                codes[at].append(found[:-1].cpu().numpy())
                rows[at, first : last + 1] += self.emb(found + self.shape.codes + level * self.shape.codebook_size)
                rows[at, first - 1] += starts[at]
            if on_codebook is not None:
                on_codebook()
        return [np.stack(each).astype(np.int64) for each in codes]

    def _most_likely(self, rows: Tensor, level: int, mask: Tensor) -> Tensor:
        """Return the most likely code of codebook `level` in each row: [B, L, H] -> [B, L]."""
        level_scale = self.level_emb.weight[level - 1]
        x = rows + self.pos_emb.weight[: rows.shape[1]]
        for block in self.blocks:
            x = block(x, level_scale, mask)
        size = self.shape.codebook_size
        return F.linear(self.ln(x, level_scale), self.head.weight[(level - 1) * size : level * size]).argmax(-1)

    def _ids(self, ids: np.ndarray) -> Tensor:
        return torch.from_numpy(ids).to(self.emb.weight.device)


def load(folder: Path, device: str = "cpu") -> ValleRefinement:
    """Load the model from a checkpoint's refinement folder.

    Raises:
        CheckpointError: If a file or tensor is missing, or does not have the expected content or shape.
    """
    try:
        made = ValleRefinement(ValleShape(**json_object(folder / CONFIG_FILE)))
    except UNPARSABLE as error:
        raise CheckpointError(
            f"{folder / CONFIG_FILE}: expected the parameters of a refinement, got {error!r}"
        ) from error
    load_strictly(made, read_tensors(folder / WEIGHTS_FILE), folder)
    return made.eval().requires_grad_(False).to(device)
