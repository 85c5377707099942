"""Replies of transformers' Higgs Audio class with the weights of a small random release."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import HiggsAudioV2ForConditionalGeneration

from plugins.higgs_audio.lab.random_higgs_audio import AUDIO_OUT, MARKERS, write_release
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.records.prompt import Prompt
from stretto.testing.noise import uniform
from stretto_higgs_audio.higgs_audio.prompt import audio_rows
from tests.reference.draw import draw

NUM_CODEBOOKS = 4


def make_prompt(family: Family, index: int, scale: float = 1.0, **changes: object) -> Prompt:
    """Return a prompt of words that ends with the row that begins audio; every second prompt also contains audio."""
    random = np.random.default_rng(index)
    layout = family.layout

    def words(number: int) -> np.ndarray:
        rows = np.full((number, layout.num_input_streams), layout.pad_id, np.int32)
        rows[:, 0] = [*random.integers(5, 300, number - 1), MARKERS["<|audio_out_bos|>"]]
        return rows

    codes = random.integers(layout.codebook_size, size=(layout.num_codebooks, 2 + 7 * (index % 3)))
    heard = [audio_rows(layout, codes)] * (index % 2)
    begins = np.array([[begin for begin, _ in layout.extra]], np.int32)
    # The longest window into which no code of what was heard reaches, once its stream has begun; a longer one where
    # nothing was.
    window = 3 * NUM_CODEBOOKS if index == 4 else NUM_CODEBOOKS + 1
    sampling = replace(family.tasks[0].sampling, ras_window=window, ras_max_repeats=1)
    audio = replace(sampling.audio, **{"temperature": 0.0, "max_rows": 16 + index} | changes)
    rows = np.concatenate([words(3 + 5 * index), *heard, words(9), begins])
    return Prompt("tts", rows, replace(sampling, audio=audio, guidance_scale=scale, seed=index))


def said(family: Family, rows: list[list[int]]) -> list[list[int]]:
    """Return the rows of a reply, including the row that ends it."""
    return [*rows, [family.end_of_audio, *[family.layout.pad_id] * (NUM_CODEBOOKS - 1)]]


class HiggsAudioReference:
    """Reference replies from transformers' class: `generate`, or rules in plain Python that recompute each row."""

    def __init__(self, model: HiggsAudioV2ForConditionalGeneration, family: Family):
        self.model, self.family = model, family
        self.size, self.num_codes = model.config.codebook_size, family.layout.codebook_size
        self._starts = torch.tensor([ids.start for ids in family.layout.audio])

    def inputs(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return rows of ids [P, K] in the form that the class reads."""
        is_audio = rows[:, 0] >= self.family.layout.audio[0].start
        made = {"input_ids": torch.where(is_audio, AUDIO_OUT, rows[:, 0])[None]}
        if is_audio.any():
            codes = (rows[is_audio] - self._starts)[None]
            made |= {"audio_input_ids": codes, "audio_input_ids_mask": torch.ones(codes.shape[:2], dtype=torch.bool)}
        return made

    @torch.no_grad()
    def generated(self, prompt: Prompt) -> list[list[int]]:
        """Return the greedy reply of `generate`: rows of absolute ids after that of begins, without that of ends.

        Repeated codes are resampled according to `ras_win_len` and `ras_win_max_num_repeat` in the generation config;
        that draw uses our noise.
        """
        inputs = self.inputs(torch.from_numpy(prompt.rows[:-1]).long())
        with self._drawn_again_with_our_noise(prompt):
            codes = self.model.generate(
                **inputs,
                attention_mask=torch.ones_like(inputs["input_ids"]),
                do_sample=False,
                max_new_tokens=1 + prompt.sampling.audio.max_rows,
            )[0]
        codes = codes[inputs["audio_input_ids"].shape[1] if "audio_input_ids" in inputs else 0 :]
        assert (codes[0] == self.num_codes).all()
        rows = (codes[1:] + self._starts).tolist()
        return rows[:-1] if (codes[-1] == self.num_codes + 1).all() else rows

    @contextmanager
    def _drawn_again_with_our_noise(self, prompt: Prompt) -> Iterator[None]:
        """Make `generate` resample repeats with our noise; the draw detects which streams it is for."""
        logits: list[torch.Tensor] = []
        sampling, config = prompt.sampling, self.model.generation_config

        def keep(_model: torch.nn.Module, _inputs: object, made: Any) -> None:
            logits.append(made.logits[0, -1].view(-1, self.size).float())

        def draw_again(chances: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            found = []
            for line in chances:
                (k,) = (k for k, each in enumerate(logits[-1]) if torch.equal(each.softmax(-1), line))
                position = len(prompt.rows) - 2 + len(logits)  # the first row is that of begins
                token, _ = self._again(logits[-1][k].tolist(), k, sampling.seed, position)
                found.append(token - int(self._starts[k]))
            return torch.tensor(found, dtype=torch.int64)[:, None]

        handle = self.model.register_forward_hook(keep)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(config, "ras_win_len", sampling.ras_window or None, raising=False)
            patch.setattr(config, "ras_win_max_num_repeat", sampling.ras_max_repeats, raising=False)
            patch.setattr(torch.Tensor, "multinomial", draw_again)
            yield
        handle.remove()

    @torch.no_grad()
    def logits(self, rows: list[list[int]]) -> torch.Tensor:
        """Return logits [K, C] after the last of `rows`."""
        made = self.model(**self.inputs(torch.tensor(rows)), use_cache=False).logits[0, -1]
        return made.view(-1, self.size)

    def naive(self, prompt: Prompt) -> tuple[list[list[int]], float]:
        """Return a reply by the rules, guided and sampled as requested, and the smallest margin of a draw."""
        prompted, hidden = prompt.rows.tolist(), self.family.unconditional
        nothing = [hidden.null_id] + [self.family.layout.pad_id] * (len(prompted[0]) - 1)
        inner = len(prompted) - hidden.keep_first - hidden.keep_last
        other = prompted[: hidden.keep_first] + [nothing] * inner + prompted[-hidden.keep_last :]
        heard = [row for row in prompted if row[0] >= self.family.layout.audio[0].start]
        said: list[list[int]] = []
        first_end, lead = None, math.inf
        while len(said) < prompt.sampling.audio.max_rows:
            logits, scale = self.logits(prompted + said), prompt.sampling.guidance_scale
            if scale != 1.0:
                unconditional = self.logits(other + said)
                logits = unconditional + scale * (logits - unconditional)
            if len(said) < prompt.sampling.audio.min_rows:
                logits[:, -1] = -math.inf
            row = []
            for k, line in enumerate(logits.tolist()):
                start, i = int(self._starts[k]), len(said)
                if i < k:
                    row.append(start + self.num_codes)
                elif first_end is not None and k < i - first_end:
                    row.append(start + self.num_codes + 1)
                else:
                    token, by = self._drawn(line, k, prompt, len(prompted) + i, [each[k] for each in heard + said])
                    row.append(token)
                    lead = min(lead, by)
            is_end = [token == start + self.num_codes + 1 for token, start in zip(row, self._starts, strict=True)]
            if all(is_end):
                break
            if any(is_end) and first_end is None:
                first_end = len(said)
            said.append(row)
        return said, lead

    def _drawn(
        self, logits: list[float], k: int, prompt: Prompt, position: int, before: list[int]
    ) -> tuple[int, float]:
        """Return the token of stream `k` and its lead; a code that is too frequent in the window is drawn again."""
        sampling, audio = prompt.sampling, prompt.sampling.audio
        start, seed = int(self._starts[k]), sampling.seed
        ids = list(range(start, start + self.size))
        if audio.temperature == 0:
            ranked = sorted(range(self.size), key=lambda column: -logits[column])
            token, lead = ids[ranked[0]], logits[ranked[0]] - logits[ranked[1]]
        else:
            rules = audio.temperature, audio.top_k, audio.top_p
            token, lead = draw(logits, ids, lambda token: uniform(seed, position, k, token), *rules)
        window = before[-sampling.ras_window :] if sampling.ras_window else []
        if token - start < self.num_codes and window.count(token) >= sampling.ras_max_repeats and window:
            again = self._again(logits, k, seed, position)
            return again[0], min(lead, again[1])
        return token, lead

    def _again(self, logits: list[float], k: int, seed: int, position: int) -> tuple[int, float]:
        """Return a draw of stream `k` from all of its logits, and its lead."""
        start = int(self._starts[k])
        ids = list(range(start, start + self.size))
        return draw(logits, ids, lambda token: uniform(seed, position, k, token, is_redraw=True), 1.0, 0, 1.0)


def convert(folder: Path, model: HiggsAudioV2ForConditionalGeneration) -> tuple[Path, Family, HiggsAudioReference]:
    """Write a release to `folder` and convert it; return the checkpoint, its family, and the reference."""
    checkpoint = write_release(folder / "release", model).convert(folder / "converted")
    family = family_at(checkpoint)
    return checkpoint, family, HiggsAudioReference(model, family)
