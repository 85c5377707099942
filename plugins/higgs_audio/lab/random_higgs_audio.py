"""Small randomly initialised Higgs Audio releases in the published transformers layout."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import HiggsAudioV2Config, HiggsAudioV2ForConditionalGeneration

from lab.releases.random_codecs import make_model as make_codec
from lab.releases.random_espnet import write_tokenizer
from stretto.convert.command import main
from stretto_higgs_audio.higgs_audio.family import NEEDED, SCENE_END, SCENE_START

NUM_TEXT_IDS = 330
HEAD = 32
MARKERS = {name: 316 + index for index, name in enumerate((*NEEDED, SCENE_START, SCENE_END))}
AUDIO_OUT = 324
DELAY = 325
PAD = 326
SPELLED = MARKERS | {"<|AUDIO_OUT|>": AUDIO_OUT, "<|reserved_special_token_6|>": DELAY, "<|end_of_text|>": PAD}
# As published, but with limits short enough for tests to exceed.
ROPE = {"rope_type": "llama3", "factor": 32.0, "rope_theta": 500000.0}
ROPE |= {"low_freq_factor": 0.125, "high_freq_factor": 0.5, "original_max_position_embeddings": 32}


def make_model(
    num_codebooks: int = 8,
    num_codes: int = 1024,
    seed: int = 0,
    ends: float = 1.0,
    width: int = 64,
    layers: int = 2,
    max_rows: int = 256,
) -> HiggsAudioV2ForConditionalGeneration:
    """Return a random model whose best logit leads clearly; `ends` scales the logits of the end codes."""
    torch.manual_seed(seed)
    config = HiggsAudioV2Config(
        vocab_size=NUM_TEXT_IDS,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // HEAD,
        num_key_value_heads=width // (2 * HEAD),
        head_dim=HEAD,
        max_position_embeddings=max_rows,
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
    heads = model.audio_lm_head.weight.normal_(0, 0.5).view(num_codebooks, num_codes + 2, width)
    heads[:, -1] *= ends
    return model


@dataclass(frozen=True)
class HiggsAudioRelease:
    """A release's folder, and the model in it."""

    folder: Path
    model: HiggsAudioV2ForConditionalGeneration

    @property
    def command(self) -> list[str]:
        """Converter's command line."""
        folder = str(self.folder)
        words = ["higgs-audio-v2", "--model", folder, "--config", f"{folder}/config.json", "--tokenizer", folder]
        codec = self.folder.parent / "tokenizer"
        return [*words, "--codec", str(codec)] if codec.exists() else words

    def convert(self, out: Path) -> Path:
        """Convert the release; return the checkpoint's folder."""
        assert main([*self.command, "--out", str(out)]) == 0
        return out


def write_release(folder: Path, model: HiggsAudioV2ForConditionalGeneration) -> HiggsAudioRelease:
    """Write a model as a release; if the shapes match, write a codec release next to it."""
    model.save_pretrained(folder)
    write_tokenizer(folder, NUM_TEXT_IDS - 10)
    record = json.loads((folder / "tokenizer.json").read_text())
    like = record["added_tokens"][0]
    record["added_tokens"] += [like | {"id": token_id, "content": name} for name, token_id in SPELLED.items()]
    (folder / "tokenizer.json").write_text(json.dumps(record))
    if model.config.codebook_size == 1026:
        make_codec("higgs").save_pretrained(folder.parent / "tokenizer")
    return HiggsAudioRelease(folder, model)
