"""OpusLM reference from ESPnet's formulas: Hugging Face's Olmo2Model or LlamaModel, recomputed for every row."""

import torch
from transformers import AutoConfig, AutoModel

from lab.releases.random_espnet import Published
from tests.reference.bagpiper import Row, best

EOS, CODEC_SSL, TEXT_BPE = 5, 34, 35


class OpusLM:
    """`text` and `ssl` are ids of words and semantic tokens; `codec` is the first code of the first codebook."""

    def __init__(self, published: Published, text: range, ssl: range, codec: int, codes: int):
        stored = torch.load(published.model, weights_only=True)
        config = AutoConfig.from_pretrained(published.backbone, vocab_size=len(stored["corelm.emb.weight"]))
        self.model = AutoModel.from_config(config).eval()
        prefix = "corelm.decoders.model."
        layers = {name.removeprefix(prefix): each for name, each in stored.items() if name.startswith(prefix)}
        self.model.load_state_dict(layers | {"embed_tokens.weight": stored["corelm.emb.weight"]})
        self.head, self.bias = stored["corelm.lm_head.weight"], stored["corelm.head_emb.weight"][:9]
        self.text = [*text, TEXT_BPE]
        books = [range(codec + k * codes, codec + (k + 1) * codes) for k in range(8)]
        self.audio = [[*ssl, CODEC_SSL], *([0, *book] for book in books)]

    @torch.no_grad()
    def logits(self, rows: list[Row]) -> torch.Tensor:
        """Return logits [9, V] after the last of `rows`; every pad adds its embedding, every stream its bias."""
        embedded = self.model.embed_tokens(torch.tensor(rows)).sum(1)
        hidden = self.model(inputs_embeds=embedded[None]).last_hidden_state[0, -1]
        return (hidden + self.bias) @ self.head.T

    def words(self, rows: list[Row], least: int, most: int) -> list[Row]:
        """Return `rows` followed by a text, excluding its end."""
        rows, start = list(rows), len(rows)
        while True:
            step = len(rows) - start
            token = best(self.logits(rows)[0], self.text + [EOS] * (step >= least))
            if step == most or token == EOS:
                return rows
            rows.append([token] + [0] * 8)

    def speech(self, rows: list[Row], least: int, most: int) -> list[Row]:
        """Return `rows`, which end with the audio marker, followed by audio, its end and eight rows."""
        rows, start = list(rows), len(rows)
        seen: int | None = None  # in the row after the one that the model drew, but in the same row if a limit sets it
        end: int | None = None
        while True:
            step = len(rows) - start
            allowed = [self.audio[0] + [EOS] * (step >= least), *self.audio[1:]]
            row = [best(each, ids) for each, ids in zip(self.logits(rows), allowed, strict=True)]
            row[step + 1 :] = [0] * len(row[step + 1 :])
            if seen is not None and step > seen:
                row[: step - seen + 1] = [0] * len(row[: step - seen + 1])
            if seen is None and step > 0 and rows[-1][0] == EOS:
                seen, end = step, step - 1
            if seen is None and step == most:
                row[0], seen, end = EOS, step, step
            rows.append(row)
            if end is not None and step == end + 8:
                return rows

    def turn(self, rows: list[Row], least: int, most: int) -> list[Row]:
        """Return the assistant's turn after `rows`: words, eight pads, its role, the audio marker, and speech."""
        rows = self.words(rows, least, most)
        alone = [[token] + [0] * 8 for token in (*[0] * 8, 10, CODEC_SSL)]
        return self.speech([*rows, *alone], least, most)
