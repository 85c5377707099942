"""Greedy Bagpiper reference from the authors' formulas: Hugging Face's Qwen3Model, recomputed for every row."""

import torch
from transformers import Qwen3Config, Qwen3Model

from lab.releases.random_espnet import Published

EOS, EOT, ASSISTANT, AUDIO, OVER = 2, 3, 6, 8, 255  # the last is ours: it marks the end of the reply for the engine
Row = list[int]


class Bagpiper:
    """`text` are word ids, `pads` each stream's pad (codes follow), and `least` and `most` the rows per segment."""

    def __init__(self, published: Published, text: range, pads: list[int], codes: int):
        stored = torch.load(published.model, weights_only=True)["module"]
        config = Qwen3Config.from_pretrained(published.backbone, vocab_size=len(stored["lm_head.weight"]))
        self.model = Qwen3Model(config).eval()
        layers = {name.removeprefix("model."): each for name, each in stored.items() if name.startswith("model.")}
        self.model.load_state_dict(layers)
        self.head, self.bias = stored["lm_head.weight"], stored["stream_emb.weight"].clone()
        self.bias[0] = 0  # the first stream has none, whatever is stored
        self.text = list(text)
        self.audio = [list(range(pad, pad + 1 + codes)) for pad in pads]

    @torch.no_grad()
    def logits(self, rows: list[Row]) -> torch.Tensor:
        """Return logits [8, V] after the last of `rows`."""
        ids = torch.tensor(rows)
        embedded = self.model.embed_tokens(ids)
        embedded[:, 1:][ids[:, 1:] == 0] = 0  # pads after the first stream are silent
        hidden = self.model(inputs_embeds=embedded.sum(1)[None]).last_hidden_state[0, -1]
        return (hidden + self.bias) @ self.head.T

    def words(self, rows: list[Row], least: int, most: int) -> tuple[list[Row], list[Row]]:
        """Return `rows` followed by a text, and the row of its end, or None if the text reached its limit."""
        rows, start = list(rows), len(rows)
        while True:
            step = len(rows) - start
            token = best(self.logits(rows)[0], self.text + [EOS, EOT] * (step >= least))
            if token in (EOS, EOT):
                return rows, [[token] + [0] * 7]
            if step == most:
                return rows, []
            rows.append([token] + [0] * 7)

    def speech(self, rows: list[Row], scale: float, least: int, most: int) -> list[Row]:
        """Return `rows`, which end with the audio marker, followed by audio and its end."""
        rows, start = list(rows), len(rows)
        while True:
            step = len(rows) - start
            logits = self.logits(rows)
            if scale != 1:
                nothing = self.logits([[0] * 8] * (start - 1) + rows[start - 1 :])
                logits = scale * logits + (1 - scale) * nothing
            allowed = [self.audio[0] + [EOS, EOT] * (step >= least), *self.audio[1:]]
            row = [best(each, ids) for each, ids in zip(logits, allowed, strict=True)]
            if step == most or row[0] in (EOS, EOT):
                return [*rows, [OVER] + [0] * 7]
            rows.append(row)


def best(logits: torch.Tensor, allowed: list[int]) -> int:
    """Return the most probable of the `allowed` ids."""
    return allowed[int(logits[allowed].argmax())]
