"""Small random VibeVoice releases in the published layout, and a slow reference built from transformers' modules.

Channel 0 of all rows is nearly constant, so that it acts as a bias of the head: frames are likely, and stretches of
audio end after several frames, often followed by another stretch.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import VibeVoiceConfig, VibeVoiceForConditionalGeneration

from stretto.convert.command import main as convert
from stretto.engine.sampling.noise import gaussian, seed_key, stream_keys
from stretto.records.prompt import Prompt
from stretto.records.sampling import LatentSampling
from stretto.streams.layout import words_of
from stretto_vibevoice.vibevoice.family import VibeVoiceVocabulary, vibevoice

END_OF_REPLY, BEGIN, END, FRAME, NUM_IDS = 256, 257, 258, 259, 264
SPECIAL = ("<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>")
HOP, NUM_NUMBERS, NUM_FEATURES = 3200, 8, 12
TOKENIZER = {
    "hidden_size": NUM_NUMBERS,
    "num_filters": 2,
    "kernel_size": 7,
    "downsampling_ratios": [4, 5, 8, 20],
    "depths": [1, 1, 1, 1, 2],
    "vae_std": 0.5,
}
SCALE, OFFSET = 0.1962, -0.0493
CONSTANT = 3.0
MAX_ROWS = 34  # of the reply to the first prompt
LENGTH = 2 + NUM_NUMBERS + NUM_FEATURES
VOCABULARY = VibeVoiceVocabulary(NUM_IDS, BEGIN, END, FRAME, END_OF_REPLY, NUM_NUMBERS, NUM_FEATURES, max_model_len=512)
# Prompts in chunks, and memory for little more than two replies: others are preempted.
TIGHT: dict[str, Any] = {
    "max_num_batched_tokens": 24,
    "max_num_seqs": 6,
    "num_gpu_blocks_override": 7,
    "max_model_len": 128,
}
# In channel 0, by kind: rows of the head for begin, end, frame and end of reply.
BIASES = {
    "tied": (0.5, 1.42, 1.25, 0.0),
    "untied": (0.5, 1.42, 1.25, 0.0),
    "long": (0.5, 1.42, 1.25, -3.0),
    "wide": (0.5, 1.15, 1.25, -3.0),
}


def config(kind: str = "tied") -> VibeVoiceConfig:
    """Return the config of a release with a tied or untied head, long replies, or published widths."""
    width, layers = (2048, 1) if kind == "wide" else (128, 3)
    text = {
        "model_type": "qwen2",
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 32,
        "num_key_value_heads": width // 64,
        "vocab_size": NUM_IDS,
        "max_position_embeddings": 512,
        "rope_theta": 1e6,
        "tie_word_embeddings": kind != "untied",
    }
    return VibeVoiceConfig(
        text_config=text,
        audio_config={"model_type": "vibevoice_acoustic_tokenizer", **TOKENIZER},
        semantic_model_config={
            "model_type": "vibevoice_acoustic_tokenizer_encoder",
            **TOKENIZER,
            "hidden_size": NUM_FEATURES,
        },
        diffusion_head_config={
            "hidden_size": width,
            "latent_size": NUM_NUMBERS,
            "num_hidden_layers": 2,
            "intermediate_size": 3 * width,
        },
        pad_token_id=END_OF_REPLY,
        eos_token_id=END_OF_REPLY,
        audio_bos_token_id=BEGIN,
        audio_eos_token_id=END,
        audio_token_id=FRAME,
    )


def tensor(name: str, shape: Sequence[int]) -> Tensor:
    """Return a random tensor that depends only on its name."""
    random = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(crc32(name.encode())))
    if "gamma" in name:
        return 0.5 + 0.1 * random
    if "norm" in name or name.endswith("act.weight"):
        return 1 + 0.1 * random.clamp(-2, 2)
    if len(shape) == 1:
        return 0.05 * random
    scale = 0.3 if "linear_2" in name else 0.8  # of connectors and the last layer: differences shall not grow
    return scale * random * torch.Size(shape[1:]).numel() ** -0.5


def model_of(kind: str) -> VibeVoiceForConditionalGeneration:
    """Return a random model."""
    model = VibeVoiceForConditionalGeneration(config(kind)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensor(name, parameter.shape))
        core, biases = model.model, torch.tensor(BIASES[kind])
        core.latent_scaling_factor.fill_(SCALE)
        core.latent_bias_factor.fill_(OFFSET)
        table = core.language_model.embed_tokens.weight
        table.copy_(0.5 * torch.randn(table.shape, generator=torch.Generator().manual_seed(1)))
        table[:, 0] = CONSTANT
        for connector in (core.multi_modal_projector, core.semantic_connector):
            connector.linear_2.bias[0] += CONSTANT / 2
        # A row of the head has a small random part; that of a frame is embedded nowhere.
        ids = [BEGIN, END, FRAME, END_OF_REPLY]
        small = torch.randn(4, table.shape[1], generator=torch.Generator().manual_seed(2))
        model.lm_head.weight[ids] = 0.9 * table.shape[1] ** -0.5 * small
        model.lm_head.weight[ids, 0] = CONSTANT + biases
    return model


def write_tokenizer(folder: Path, special: Sequence[str] = SPECIAL, words: Sequence[str] = ()) -> None:
    """Write a byte-level tokenizer with special tokens, followed by added words."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({character: index for index, character in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    made.add_tokens([AddedToken(word, normalized=False) for word in words])
    made.save(str(folder / "tokenizer.json"))


def write_release(folder: Path, kind: str = "tied") -> Path:
    """Write a release and return its folder."""
    model_of(kind).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def convert_release(folder: Path, kind: str = "tied") -> Path:
    """Write a release and convert it; return the checkpoint's folder."""
    release = write_release(folder / "release", kind)
    config_file = str(release / "config.json")
    options = ["--model", str(release), "--config", config_file, "--out", str(folder / "checkpoint")]
    assert convert(["vibevoice", *options]) == 0
    return folder / "checkpoint"


def make_prompt(index: int) -> Prompt:
    """Return a prompt, which contains a voice if `index` is odd; lengths, steps and scales depend on index."""
    random = np.random.default_rng(index)
    rows = np.zeros((9 + 7 * index, LENGTH), np.int32)
    rows[:, 0] = random.integers(0, 250, len(rows))
    rows[-1, 0] = BEGIN
    if index % 2:
        rows[2:5, 0] = NUM_IDS
        rows[2:5, 1 : 1 + NUM_NUMBERS] = words_of(random.standard_normal((3, NUM_NUMBERS)))
    sampling = vibevoice(VOCABULARY).tasks[0].sampling
    return Prompt(
        "tts",
        rows,
        replace(
            sampling,
            audio=replace(sampling.audio, max_rows=MAX_ROWS - index),
            latents=LatentSampling(2 + index % 3 * 3),
            guidance_scale=(1.5, 2.0, 1.0)[index % 3],
            seed=index,
        ),
    )


def spread_of(nudged: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the largest difference in each row, or infinity for rows after a different id."""
    number = min(len(nudged), len(expected))
    found = np.full(len(expected), np.inf)
    found[:number] = np.abs(nudged[:number] - expected[:number]).max(1)
    return found


def solve(velocity: Any, x: Tensor, number: int) -> Tensor:
    """Solve with n steps of DPM-Solver++ 2M (midpoint), for a velocity(x, time)."""

    def bar(t: float) -> float:
        return float(np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2)

    betas = np.array([min(1 - bar((i + 1) / 1000) / bar(i / 1000), 0.999) for i in range(1000)], np.float32)
    bars = np.cumprod(1 - betas, dtype=np.float32).astype(np.float64)
    times = np.linspace(0, 999, number + 1).round()[::-1][:-1].astype(int)
    ratio = np.append(np.sqrt((1 - bars[times]) / bars[times]), 0.0)
    alpha = 1 / np.sqrt(1 + ratio**2)
    sigma, data = ratio * alpha, list[Tensor]()
    log_ratio = np.log(alpha[:-1]) - np.log(sigma[:-1])
    for step, time in enumerate(times):
        data.append(float(alpha[step]) * x - float(sigma[step]) * velocity(x, float(time)))
        if step == number - 1:
            return data[-1]
        width, ahead = log_ratio[step + 1] - log_ratio[step], data[-1]
        if step > 0:
            slope = (log_ratio[step] - log_ratio[step - 1]) / width
            ahead = data[-1] + float(0.5 / slope) * (data[-1] - data[-2])
        x = float(sigma[step + 1] / sigma[step]) * x - float(alpha[step + 1] * np.expm1(-width)) * ahead
    raise AssertionError(number)


class Reference:
    """Reference that recomputes everything for each row; each stretch of audio is decoded and encoded from its start.

    Args:
        model: Network.
        nudge: Value added to the first latent of a reply.
    """

    def __init__(self, model: VibeVoiceForConditionalGeneration, nudge: Tensor | None = None):
        self.model, self.core, self.nudge = model, model.model, nudge

    @torch.inference_mode()
    def reply(
        self, rows: np.ndarray, seed: int, guidance: float, steps: int, max_rows: int
    ) -> tuple[list[int], np.ndarray, np.ndarray, float]:
        """Return a reply's ids, latents [T, D], features [T, E], and the smallest margin of a decision.

        Args:
            rows: Rows of the prompt, int32 [P, S], as the preprocessor writes them.
            seed: Seed of the noise.
            guidance: Guidance scale.
            steps: Number of solver steps.
            max_rows: Largest number of rows before the end of the reply.
        """
        core, table = self.core, self.core.language_model.embed_tokens.weight
        is_voice = torch.from_numpy(rows[:, 0] == NUM_IDS)
        embeds = table[torch.from_numpy(rows[:, 0]).clamp(max=NUM_IDS - 1).long()].clone()
        voices = torch.from_numpy(np.ascontiguousarray(rows[:, 1 : 1 + NUM_NUMBERS]).view(np.float32).copy())
        embeds[is_voice] = core.multi_modal_projector(voices[is_voice])
        ids, latents, features, lead = list[int](), list[Tensor](), list[Tensor](), float("inf")
        stretch = list[Tensor]()  # scaled latents
        free = [table[BEGIN]]
        allowed = [BEGIN, END, FRAME, END_OF_REPLY]
        while True:
            hidden = self._last_state(embeds)
            choices = [BEGIN, END_OF_REPLY] if ids and ids[-1] == END else allowed
            if not ids:
                choices = allowed[:3]  # a reply has at least one row
            scores = self.model.lm_head.weight[choices] @ hidden
            best = scores.topk(2).values
            lead = min(lead, float(best[0] - best[1]))
            ids.append(choices[int(scores.argmax())] if len(ids) < max_rows else END_OF_REPLY)
            if ids[-1] == END_OF_REPLY:
                return ids, np.stack(latents), np.stack(features), lead
            if ids[-1] != FRAME:
                embeds = torch.cat([embeds, table[ids[-1]][None]])
                stretch, free = [], [table[BEGIN]]
                continue
            position = np.array([len(rows) + len(ids) - 1], np.int32)
            width = 2 + NUM_NUMBERS + NUM_FEATURES
            keys = stream_keys(np.array([seed_key(seed)], np.int32), position, width)[0, 1 : 1 + NUM_NUMBERS]
            states = torch.stack([hidden, self._last_state(torch.stack(free))])
            x = solve(self._velocity(states, guidance), torch.from_numpy(gaussian(keys)), steps)
            if self.nudge is not None and not latents:
                x = x + self.nudge
            stretch.append(x)
            audio = core.audio_tower.decoder((torch.stack(stretch) / SCALE - OFFSET).T[None]).audio
            heard = core.semantic_tokenizer_encoder(audio).latents[0, -1]
            latents.append(x)
            features.append(heard)
            row = (core.multi_modal_projector(x[None]) + core.semantic_connector(heard[None]))[0]
            embeds, free = torch.cat([embeds, row[None]]), [*free, row]

    def _last_state(self, embeds: Tensor) -> Tensor:
        return self.core.language_model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[0, -1]

    def _velocity(self, states: Tensor, guidance: float) -> Any:
        def velocity(x: Tensor, time: float) -> Tensor:
            both = self.core.diffusion_head(x.expand(2, -1), torch.full((2,), time), condition=states)
            return both[1] + guidance * (both[0] - both[1])

        return velocity
