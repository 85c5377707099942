"""A CSM release in transformers' layout with small random weights, and replies of transformers' classes."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CsmConfig, CsmForConditionalGeneration, DynamicCache

from lab.releases.random_espnet import write_tokenizer
from lab.releases.random_tensors import split_weights
from stretto.convert.command import main
from stretto.families.csm.family import SAMPLING
from stretto.family.base import Family
from stretto.family.plugin import family_at
from stretto.records.prompt import Prompt
from tests.codecs.test_mimi import SMALL as MIMI

NUM_CODEBOOKS, CODEBOOK_SIZE, NUM_TEXT_IDS, WIDTH = 6, 32, 330, 64
UNUSED = 3  # ids after the codes of each table, as published
FIRST_IDS = NUM_TEXT_IDS + CODEBOOK_SIZE * np.arange(NUM_CODEBOOKS)
BEGIN, END, PAD, END_OF_AUDIO = range(318, 322)  # after the tokenizer's others
SPECIAL = {"<|begin_of_text|>": BEGIN, "<|end_of_text|>": END, "<|AUDIO|>": PAD, "<|audio_eos|>": END_OF_AUDIO}
# As published, but for lengths that the tests can outlast.
SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 0.125,
    "high_freq_factor": 0.5,
    "original_max_position_embeddings": 32,
}
SCALING_OF_DEPTH = {"low_freq_factor": 0.002, "high_freq_factor": 0.008, "original_max_position_embeddings": 16}
LAYERS = {
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 2,
    "vocab_size": CODEBOOK_SIZE + UNUSED,
}
CONFIG: dict[str, Any] = {
    **LAYERS,
    "num_codebooks": NUM_CODEBOOKS,
    "text_vocab_size": NUM_TEXT_IDS,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "codebook_pad_token_id": CODEBOOK_SIZE + UNUSED - 1,
    "bos_token_id": BEGIN,
    "audio_token_id": PAD,
    "audio_eos_token_id": END_OF_AUDIO,
    "rope_parameters": {"rope_theta": 500000.0, **SCALING},
    "depth_decoder_config": {
        **LAYERS,
        "num_codebooks": NUM_CODEBOOKS,
        "backbone_hidden_size": WIDTH,
        "hidden_size": 32,
        "intermediate_size": 48,
        "head_dim": 16,
        "max_position_embeddings": NUM_CODEBOOKS + 1,
        "rope_parameters": {"rope_theta": 500000.0, **SCALING, **SCALING_OF_DEPTH},
    },
    "codec_config": MIMI | {"model_type": "mimi", "num_quantizers": NUM_CODEBOOKS, "codebook_size": CODEBOOK_SIZE},
}


@dataclass(frozen=True)
class CsmRelease:
    """A release's folder, and the model in it.

    Attributes:
        folder: The folder.
        model: The model.
        weights: Name of the file in the folder that the converter reads; empty for the folder.
    """

    folder: Path
    model: CsmForConditionalGeneration
    weights: str = "transformers.safetensors.index.json"

    @property
    def command(self) -> list[str]:
        """Arguments of the converter."""
        return [
            "csm",
            *("--model", str(self.folder / self.weights)),
            *("--config", str(self.folder / "config.json")),
            *("--tokenizer", str(self.folder)),
            "--codec-from-model",
        ]

    def convert(self, out: Path) -> Path:
        """Convert the release and return the checkpoint."""
        assert main([*self.command, "--out", str(out)]) == 0
        return out


def make_model(seed: int = 0) -> CsmForConditionalGeneration:
    """Return a random model whose best logit leads clearly and which never generates invalid codes."""
    torch.manual_seed(seed)
    model = CsmForConditionalGeneration(CsmConfig(**CONFIG)).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        is_norm = "norm" in name
        scale = 0.1 if is_norm else 0.5 if "embed" in name else 1.5 * weight[0].numel() ** -0.5
        weight.normal_(float(is_norm), scale)
    heads = model.lm_head.weight, model.depth_decoder.codebooks_head.weight.transpose(1, 2)
    for head in heads:
        head.normal_()
        head[..., CODEBOOK_SIZE:, :] = 0
    for module in model.modules():
        if type(module).__name__ == "MimiEuclideanCodebook":
            module.embed_sum.normal_()
    last = model.codec_model.decoder.layers[-1].conv
    last.bias.zero_()
    last.weight *= 0.05
    model.tie_weights()
    return model


def swap_codes(model: CsmForConditionalGeneration, codes: list[int]) -> None:
    """Exchange code 0 with one of `codes` in each codebook; replies are unchanged otherwise."""
    size = model.config.vocab_size
    for k, code in enumerate(codes):
        heads = model.depth_decoder.codebooks_head.weight
        head = model.lm_head.weight if k == 0 else heads[k - 1].T
        tables = model.depth_decoder.model.embed_tokens, model.backbone_model.embed_tokens.embed_audio_tokens
        for table in (head, *(each.weight[k * size : (k + 1) * size] for each in tables)):
            table[[0, code]] = table[[code, 0]]


def write_release(folder: Path, model: CsmForConditionalGeneration) -> CsmRelease:
    """Write a model as a release of several files with an index, as in Sesame's repository."""
    release = write_saved(folder, model)
    split_weights(folder, 2, "transformers")
    return CsmRelease(folder, release.model)


def write_saved(folder: Path, model: CsmForConditionalGeneration) -> CsmRelease:
    """Write a model as `save_pretrained` does, to a single file."""
    model.save_pretrained(folder)
    write_tokenizer(folder, NUM_TEXT_IDS - 8)
    record = json.loads((folder / "tokenizer.json").read_text())
    like = record["added_tokens"][0]
    record["added_tokens"] += [like | {"id": token_id, "content": name} for name, token_id in SPECIAL.items()]
    (folder / "tokenizer.json").write_text(json.dumps(record))
    return CsmRelease(folder, model, "")


def prompt_of(index: int, num_frames: int, scale: float = 1.0) -> Prompt:
    """Return a greedy request with the words of one or two turns, and the first turn's frames between them."""
    random = np.random.default_rng(index)
    words = np.full((3 + 5 * index, NUM_CODEBOOKS), PAD, np.int32)
    words[:, 0] = [BEGIN, *random.integers(5, NUM_TEXT_IDS - 8, len(words) - 2), END]
    frames = FIRST_IDS + random.integers(CODEBOOK_SIZE, size=(num_frames, NUM_CODEBOOKS))
    rows = np.concatenate([words, frames, words] if num_frames else [words]).astype(np.int32)
    sampling = SAMPLING
    audio = replace(sampling.audio, temperature=0.0, max_rows=14 + index)
    return Prompt("speak", rows, replace(sampling, audio=audio, guidance_scale=scale, seed=index))


class CsmReference:
    """Reference replies from transformers' classes: `generate`, or a recomputation for every code if guided."""

    def __init__(self, model: CsmForConditionalGeneration):
        self.model = model

    def reply(self, prompt: Prompt) -> list[list[int]]:
        """Return the greedy reply: rows of absolute ids, including the frame that ends the audio."""
        guide = self.generated if prompt.sampling.guidance_scale == 1.0 else self.guided
        return (guide(prompt).numpy() + FIRST_IDS).tolist()

    def embeds(self, rows: np.ndarray) -> Tensor:
        """Embed rows of ids [P, K], text or frames, as the backbone reads them, [P, H]."""
        is_frame = rows[:, 1:2] != PAD
        text = self.model.embed_text_tokens(torch.from_numpy(np.where(is_frame, 0, rows[:, :1]))[:, 0])
        codes = torch.from_numpy(np.where(is_frame, rows - FIRST_IDS, 0))
        frames = self.model.backbone_model.embed_tokens(codes[None])[0]
        return torch.where(torch.from_numpy(is_frame), frames, text)

    @torch.no_grad()
    def generated(self, prompt: Prompt) -> Tensor:
        """Return the codes of `generate`, [T, K]."""
        return self.model.generate(
            inputs_embeds=self.embeds(prompt.rows)[None],
            do_sample=False,
            depth_decoder_do_sample=False,
            max_new_tokens=prompt.sampling.audio.max_rows,
        )[0]

    @torch.no_grad()
    def guided(self, prompt: Prompt) -> Tensor:
        """Return the codes of a guided reply of `max_rows` rows, from two replies whose logits are merged, [T, K]."""
        unconditional = prompt.rows.copy()
        unconditional[1:-1] = PAD
        contexts = torch.stack([self.embeds(prompt.rows), self.embeds(unconditional)])
        frames = list[Tensor]()
        for _ in range(prompt.sampling.audio.max_rows):
            states = self.model.backbone_model(inputs_embeds=contexts, use_cache=False).last_hidden_state[:, -1]
            codes = [_merged(self.model.lm_head(states), prompt)]
            for _ in range(NUM_CODEBOOKS - 1):
                logits = self.model.depth_decoder(
                    input_ids=torch.tensor([[0, *codes]] * 2),
                    backbone_last_hidden_state=states,
                    past_key_values=DynamicCache(),
                ).logits
                codes.append(_merged(logits[:, -1], prompt))
            frames.append(torch.tensor(codes))
            frame = self.model.backbone_model.embed_tokens(frames[-1][None, None])
            contexts = torch.cat([contexts, frame.expand(2, 1, -1)], 1)
        return torch.stack(frames)


def _merged(logits: Tensor, prompt: Prompt) -> int:
    conditional, unconditional = logits
    return int((unconditional + prompt.sampling.guidance_scale * (conditional - unconditional)).argmax())


def convert(folder: Path, model: CsmForConditionalGeneration) -> tuple[Path, Family]:
    """Write a release to `folder` and convert it; return the checkpoint and its family."""
    checkpoint = write_release(folder / "release", model).convert(folder / "converted")
    return checkpoint, family_at(checkpoint)
