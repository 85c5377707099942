"""VITA-Audio replies by definition: every token is recomputed from the whole sequence, without any cache.

Hugging Face's Qwen2 layers, plain Python around them. Tokens t_0 … t_n are known. The main model reads them all and
samples the next. The module k = 0, 1, … that samples after it reads the hidden state of slot j and token j + k + 1.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2ForCausalLM

NOTHING: Mapping[int, Tensor] = MappingProxyType({})


def drawn_by(schedule: Sequence[int], num_modules: int) -> Iterator[int]:
    """For each token of a reply, yield the index of the MCTP module that samples it, or -1 for the main model.

    Args:
        schedule: Numbers of tokens that the main model and the modules sample alternately. The last pair repeats.
        num_modules: Number of modules. If a number in the schedule is larger, the main model samples one token after
            the last module, and the modules then start over with the first.
    """
    pairs = [tuple(schedule[at : at + 2]) for at in range(0, len(schedule), 2)]
    while True:
        main, more = pairs.pop(0) if len(pairs) > 1 else pairs[0]
        yield from [-1] * main
        yield from (
            index % (num_modules + 1) if index % (num_modules + 1) < num_modules else -1 for index in range(more)
        )


class VitaReference:
    """Reference for a small release, given as `weights` by published name, in float64."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, np.ndarray]):
        self.num_modules = config["num_nextn_predict_layers"]
        self.num_main = config["num_hidden_layers"] - self.num_modules
        known = ("num_nextn_predict_layers", "architectures", "model_type", "torch_dtype")
        plain = Qwen2Config(**{name: value for name, value in config.items() if name not in known})
        plain._attn_implementation = "eager"
        self.model = Qwen2ForCausalLM(plain).double().eval()
        tensors = {name: torch.from_numpy(weight).double() for name, weight in weights.items()}
        self.beside = {name: tensors.pop(name) for name in list(tensors) if name.startswith("mtp_")}
        self.model.load_state_dict(tensors)
        self._eps = plain.rms_norm_eps

    @torch.no_grad()
    def logits(self, tokens: Sequence[int], module: int, heard: Mapping[int, Tensor] = NOTHING) -> Tensor:
        """Return logits [V] of the token after `tokens`.

        Args:
            tokens: Token ids of the prompt and the reply.
            module: Index of the MTP module, or -1 for the main model.
            heard: Embedded audio rows [n, H] by the position of the first token that they replace.
        """
        embedded = self.model.model.embed_tokens(torch.tensor(list(tokens)))
        return self.model.lm_head(self.hidden(embedded, module, heard)[-1])

    @torch.no_grad()
    def hidden(self, embedded: Tensor, module: int, heard: Mapping[int, Tensor] = NOTHING) -> Tensor:
        """Return the hidden states of a draw by `module` after each of `embedded` tokens [n, H].

        The first `module` + 1 tokens have none, so the result is [n - module - 1, H]. Modules receive no audio.
        """
        states = self.all_hidden(embedded, len(embedded) - module - 1, heard)
        return next(islice(states, module + 1, None))

    @torch.no_grad()
    def all_hidden(self, embedded: Tensor, slots: int, heard: Mapping[int, Tensor] = NOTHING) -> Iterator[Tensor]:
        """Yield the hidden states of the first `slots` draws by the main model, and then by each module."""
        read, known = embedded.clone(), self.beside
        for first, rows in heard.items():
            read[first : first + len(rows)] = rows
        hidden = self._run(read[None, :slots], 0, range(self.num_main))
        yield hidden[0]
        for k in range(self.num_modules):
            token = embedded[None, k + 1 : k + 1 + slots]
            both = [
                self._norm(token, known[f"mtp_embed_norms.{k}.weight"]),
                self._norm(hidden[:, : token.shape[1]], known[f"mtp_hidden_norms.{k}.weight"]),
            ]
            joined = torch.cat(both, -1) @ known[f"mtp_projs.{k}.weight"].T
            hidden = self._run(joined, k + 1, [self.num_main + k])
            yield hidden[0]

    def _run(self, hidden: Tensor, first: int, layers: Sequence[int]) -> Tensor:
        """Run rows at positions from `first` on through `layers` and the last norm."""
        model, size = self.model.model, hidden.shape[1]
        positions = torch.arange(first, first + size)[None]
        mask = torch.full((size, size), -torch.inf, dtype=hidden.dtype).triu(1)[None, None]
        for index in layers:
            rotary = model.rotary_emb(hidden, positions)
            hidden = model.layers[index](hidden, attention_mask=mask, position_embeddings=rotary)
        return model.norm(hidden)

    def _norm(self, values: Tensor, weight: Tensor) -> Tensor:
        return weight * values * (values.pow(2).mean(-1, keepdim=True) + self._eps).rsqrt()

    def reply(
        self,
        prompt: Sequence[int],
        schedule: Sequence[int],
        num_tokens: int,
        penalty: float = 1.0,
        heard: Mapping[int, Tensor] = NOTHING,
    ) -> list[int]:
        """Return the ids of a greedy reply; `penalty` lowers ids that occur earlier in the reply or in the prompt."""
        tokens, drawers = list(prompt), drawn_by(schedule, self.num_modules)
        for _ in range(num_tokens):
            logits = self.logits(tokens, next(drawers), heard)
            seen = sorted(set(tokens))
            logits[seen] = torch.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
            tokens.append(int(logits.argmax()))
        return tokens[len(prompt) :]
