"""Second pass of IndexTTS-2's GPT-2 over a finished reply, which converts codes to latents.

    rows       voice … voice │ speed, speed │ [START] text [STOP] │ [START] c0 c1 … c(n-2)
    position                 │              │    0  1 … T  T + 1  │    0    1  2 … n - 1
    result                                                            l0   l1 l2 … l(n-1)

The authors' code generates codes at other positions (0, 2, 3, …) than it uses here, so hidden states of the engine are
not the latents that the decoder was trained with. Tensors are named as in the published `gpt.pth`, but the weights of
layers are transposed, because GPT-2 publishes them as [inputs, outputs].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stretto_indextts2.family import END_OF_TEXT, NUM_SPEEDS, START_OF_TEXT


@dataclass(frozen=True, slots=True)
class GptShape:
    """Sizes of the language model. The last two of `num_code_ids` are the start and the end of speech."""

    width: int
    layers: int
    heads: int
    num_text_ids: int
    num_text_positions: int
    num_code_ids: int
    num_positions: int

    @property
    def start_of_speech(self) -> int:
        """Id that precedes the codes."""
        return self.num_code_ids - 2


class _Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.c_attn = nn.Linear(shape.width, 3 * shape.width)
        self.c_proj = nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.c_attn(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.c_proj(attended.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.c_fc = nn.Linear(shape.width, 4 * shape.width)
        self.c_proj = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class _Layer(nn.Module):
    """Attention and feed-forward layer, each with pre-norm and a residual connection."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(shape.width)
        self.attn = _Attention(shape)
        self.ln_2 = nn.LayerNorm(shape.width)
        self.mlp = _FeedForward(shape)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _Backbone(nn.Module):
    """Layers of GPT-2 and its final norm."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.h = nn.ModuleList(_Layer(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)


def _positions(number: int, width: int) -> nn.ModuleDict:
    return nn.ModuleDict({"emb": nn.Embedding(number, width)})


class Latents(nn.Module):
    """GPT-2 that reads a voice, a text and the codes of a reply."""

    def __init__(self, shape: GptShape) -> None:
        super().__init__()
        self.shape = shape
        self.gpt = _Backbone(shape)
        self.final_norm = nn.LayerNorm(shape.width)
        self.speed_emb = nn.Embedding(NUM_SPEEDS, shape.width)
        self.text_embedding = nn.Embedding(shape.num_text_ids, shape.width)
        self.text_pos_embedding = _positions(shape.num_text_positions, shape.width)
        self.mel_embedding = nn.Embedding(shape.num_code_ids, shape.width)
        self.mel_pos_embedding = _positions(shape.num_positions, shape.width)

    def forward(self, voice: Tensor, text: Tensor, codes: Tensor, on_step: Callable[[], None]) -> Tensor:
        """Return the latents [n, H] of codes [n].

        Args:
            voice: Rows of the voice, including its emotion, [R, H].
            text: Ids of the text without start and end, [T].
        """
        text = F.pad(text, (1, 0), value=START_OF_TEXT)
        text = F.pad(text, (0, 1), value=END_OF_TEXT)
        speech = F.pad(codes[:-1], (1, 0), value=self.shape.start_of_speech)
        rows = [
            voice,
            self.speed_emb.weight.flip(0),  # half the speed, and the speed, as the authors call them
            self.text_embedding(text) + self.text_pos_embedding.get_parameter("emb.weight")[: len(text)],
            self.mel_embedding(speech) + self.mel_pos_embedding.get_parameter("emb.weight")[: len(speech)],
        ]
        x = torch.cat(rows)[None]
        for layer in self.gpt.h:
            x = layer(x)
            on_step()
        return self.final_norm(self.gpt.ln_f(x[0, -len(codes) :]))
