"""Higgs Audio's release with small random weights, as transformers publishes it, and what its own class replies."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from benchmarks.checkpoints.random_codecs import make_model as make_codec
from benchmarks.checkpoints.random_published import write_tokenizer
from stretto.checkpoints.command import main
from stretto.families.base import Family
from stretto.families.higgs_audio.family import NEEDED, SCENE_END, SCENE_START
from stretto.families.registry import family_at
from stretto.records.prompt import Prompt
from tests.reference.draw import draw
from tests.reference.noise import uniform

NUM_TEXT_IDS, WIDTH, HEAD = 330, 64, 32
MARKERS = {name: 316 + index for index, name in enumerate((*NEEDED, SCENE_START, SCENE_END))}
AUDIO_OUT, DELAY, PAD = 324, 325, 326
SPELLED = MARKERS | {"<|AUDIO_OUT|>": AUDIO_OUT, "<|reserved_special_token_6|>": DELAY, "<|end_of_text|>": PAD}
# As published, but for lengths that the tests can outlast.
ROPE = {"rope_type": "llama3", "factor": 32.0, "rope_theta": 500000.0}
ROPE |= {"low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 32}


def make_model(
    num_codebooks: int = 8, num_codes: int = 1024, seed: int = 0, ends: float = 1.0
) -> HiggsAudioV2ForConditionalGeneration:
    """Random weights whose best logit leads. ends: how large the logits of the streams' ends are beside others."""
    torch.manual_seed(seed)
    config = HiggsAudioV2Config(
        vocab_size=NUM_TEXT_IDS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=HEAD,
        max_position_embeddings=256,
        rope_parameters=ROPE,
        num_codebooks=num_codebooks,
        codebook_size=num_codes + 2,
        audio_stream_bos_id=num_codes,
        audio_stream_eos_id=num_codes + 1,
        audio_token_id=AUDIO_OUT,
        audio_delay_token_id=DELAY,
        audio_bos_token_id=MARKERS["<|audio_out_bos|>"],
        bos_token_id=MARKERS["<|begin_of_text|>"],
        eos_token_id=MARKERS["<|eot_id|>"],
        pad_token_id=PAD,
    )
    model = HiggsAudioV2ForConditionalGeneration(config).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        is_norm = "norm" in name
        scale = 0.3 if is_norm else 0.5 if "embed" in name else 1.5 * weight[0].numel() ** -0.5
        weight.normal_(float(is_norm), scale)
    heads = model.audio_lm_head.weight.normal_(0, 0.5).view(num_codebooks, num_codes + 2, WIDTH)
    heads[:, -1] *= ends
    return model


@dataclass(frozen=True)
class HiggsAudioRelease:
    """Where its files lie, and the model that they hold."""

    folder: Path
    model: HiggsAudioV2ForConditionalGeneration

    @property
    def command(self) -> list[str]:
        """What the converter is told of it."""
        folder = str(self.folder)
        words = ["higgs-audio-v2", "--model", folder, "--config", f"{folder}/config.json", "--tokenizer", folder]
        codec = self.folder.parent / "tokenizer"
        return [*words, "--codec", str(codec)] if codec.exists() else words

    def convert(self, out: Path) -> Path:
        """The checkpoint that the converter makes of it."""
        assert main([*self.command, "--out", str(out)]) == 0
        return out


def write_release(folder: Path, model: HiggsAudioV2ForConditionalGeneration) -> HiggsAudioRelease:
    """The release of a model and, where they fit, that of its codec beside it."""
    model.save_pretrained(folder)
    write_tokenizer(folder, NUM_TEXT_IDS - 10)
    record = json.loads((folder / "tokenizer.json").read_text())
    like = record["added_tokens"][0]
    record["added_tokens"] += [like | {"id": token_id, "content": name} for name, token_id in SPELLED.items()]
    (folder / "tokenizer.json").write_text(json.dumps(record))
    if model.config.codebook_size == 1026:
        make_codec("higgs").save_pretrained(folder.parent / "tokenizer")
    return HiggsAudioRelease(folder, model)


class HiggsAudioReference:
    """Replies by transformers' own class: `generate`, or each row from the beginning by the rules in plain Python."""

    def __init__(self, model: HiggsAudioV2ForConditionalGeneration, family: Family):
        self.model, self.family = model, family
        self.size, self.num_codes = model.config.codebook_size, family.layout.codebook_size
        self._starts = torch.tensor([ids.start for ids in family.layout.audio])

    def inputs(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Rows of ids [P, K] as the class takes them."""
        is_audio = rows[:, 0] >= self.family.layout.audio[0].start
        made = {"input_ids": torch.where(is_audio, AUDIO_OUT, rows[:, 0])[None]}
        if is_audio.any():
            codes = (rows[is_audio] - self._starts)[None]
            made |= {"audio_input_ids": codes, "audio_input_ids_mask": torch.ones(codes.shape[:2], dtype=torch.bool)}
        return made

    @torch.no_grad()
    def generated(self, prompt: Prompt) -> list[list[int]]:
        """What `generate` replies greedily: rows of absolute ids behind that of begins, without that of ends."""
        inputs = self.inputs(torch.from_numpy(prompt.rows[:-1]).long())
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

    @torch.no_grad()
    def logits(self, rows: list[list[int]]) -> torch.Tensor:
        """Logits [K, C] behind the last of `rows`."""
        made = self.model(**self.inputs(torch.tensor(rows)), use_cache=False).logits[0, -1]
        return made.view(-1, self.size)

    def naive(self, prompt: Prompt) -> tuple[list[list[int]], float]:
        """A reply by the rules, guided and drawn as asked for, and the smallest lead of a draw."""
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
        """What stream `k` draws, and its lead; a code that it has said too often in the window is drawn again."""
        sampling, audio = prompt.sampling, prompt.sampling.audio
        start, seed = int(self._starts[k]), sampling.seed
        ids = list(range(start, start + self.size))
        if audio.temperature == 0:
            ranked = sorted(range(self.size), key=lambda column: -logits[column])
            return ids[ranked[0]], logits[ranked[0]] - logits[ranked[1]]
        rules = audio.temperature, audio.top_k, audio.top_p
        token, lead = draw(logits, ids, lambda token: uniform(seed, position, k, token), *rules)
        window = before[-sampling.ras_window :] if sampling.ras_window else []
        if token - start < self.num_codes and window.count(token) >= sampling.ras_max_repeats and window:
            again = draw(logits, ids, lambda token: uniform(seed, position, k, token, is_redraw=True), 1.0, 0, 1.0)
            return again[0], min(lead, again[1])
        return token, lead


def convert(folder: Path, model: HiggsAudioV2ForConditionalGeneration) -> tuple[Path, Family, HiggsAudioReference]:
    """A release written under `folder` and converted: the checkpoint, its family, and the reference."""
    checkpoint = write_release(folder / "release", model).convert(folder / "converted")
    family = family_at(checkpoint)
    return checkpoint, family, HiggsAudioReference(model, family)
