"""Small random checkpoint in the layout of ESPnet's VALL-E recipes, identical on every machine.

valle.pth   config.yaml   tokenizer/   codec/ (ESPnet's DAC)
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from benchmarks.checkpoints.random_espnet import write_codec
from benchmarks.checkpoints.random_published import tokenizer_words, write_tokenizer
from stretto.convert.command import main
from stretto.families.valle.convert import (
    EMBEDDINGS,
    HEAD,
    SECOND,
    autoregressive_plan,
    folded_shapes,
    refinement_plan,
    refinement_shape,
)
from stretto.families.valle.family import SOS_EOS, ValleVocabulary

NUMBERS: dict[str, Any] = {"att_unit": 64, "head": 2, "ar_layer": 2, "nar_layer": 2, "n_ctx": 256, "qk_norm": False}
# 256 special tokens, eight codebooks of 12 codes, 60 ids of text; a voice of 6 frames.
KNOWN = ValleVocabulary(412, (352, 412), 256, 8, 12, voice_frames=6, max_model_len=256)
ENDING = 1.3  # factor of the logit of the end, so that some replies end by themselves


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors by published name."""
    first = {name: part.stored for name, part in autoregressive_plan(NUMBERS, KNOWN, {}).items()}
    second = {name: part.stored for name, part in refinement_plan(refinement_shape(NUMBERS, KNOWN), KNOWN).items()}
    return first | folded_shapes(NUMBERS) | {name: second[name] for name in second if name.startswith(SECOND)}


def tensors(seed: int = 1) -> dict[str, Tensor]:
    """Return the tensors as training leaves them, with one tensor for the table and the head."""
    random = np.random.Generator(np.random.PCG64(seed))
    made = {name: random.standard_normal(shape) for name, shape in shapes().items() if name != HEAD}
    for name, noise in made.items():
        if noise.ndim == 1:
            made[name] = 0.3 * noise if name.endswith("bias") else 1 + 0.2 * noise
        else:
            made[name] = noise * (0.5 if "emb" in name else 1.5 * noise.shape[-1] ** -0.5)
    made[EMBEDDINGS][SOS_EOS] *= ENDING
    made[HEAD] = made[EMBEDDINGS]
    return {name: torch.from_numpy(each.astype(np.float32)) for name, each in made.items()}


def token_list(tokenizer: Path) -> list[str]:
    """Return the names of all ids as ESPnet makes them (espnet2/speechlm/definitions.py), the tokenizer's last."""
    named = {0: "<pad>", 1: "<unk>", 2: "<blank>", 3: "<space>", SOS_EOS: "<sos/eos>"}
    named |= {KNOWN.codec_marker: "<codec_start/end>", KNOWN.text_marker: "<text_bpe_start/end>"}
    named |= {KNOWN.voice_marker: "<spk_start/end>", KNOWN.task: "<bpe_tts_task>"}
    names = [named.get(token_id, f"<unused_token_{token_id}>") for token_id in range(KNOWN.codec)]
    for codebook in range(KNOWN.num_codebooks):
        names += [f"<codec_layer{codebook}_code{code}>" for code in range(KNOWN.codebook_size)]
    return names + tokenizer_words(tokenizer, len(names), KNOWN.vocab_size)


def config(tokenizer: Path) -> dict[str, Any]:
    """Return the entries of config.yaml that describe the model."""
    codes = [KNOWN.codec, KNOWN.codec + KNOWN.num_codebooks * KNOWN.codebook_size]
    return {
        "token_list": token_list(tokenizer),
        "token_bias": {"special_token": [0, KNOWN.codec], "codec": codes, "text_bpe": [*KNOWN.text]},
        "subword_model": "small/tokenizer",
        "codec_token_per_frame": KNOWN.num_codebooks,
        "codec_token_in_use": KNOWN.num_codebooks,
        "speaker_prompt_length": KNOWN.voice_frames,
        "corelm": "valle",
        "corelm_conf": {**NUMBERS, "share_emb": True},
        "train_dtype": "float32",
    }


def write_release(folder: Path, seed: int = 1) -> Path:
    """Write a release, as a recipe leaves it, to `folder`."""
    folder.mkdir(parents=True)
    tokenizer = write_tokenizer(folder / "tokenizer", len(range(*KNOWN.text)))
    write_codec(folder / "codec", KNOWN.codebook_size, seed)
    (folder / "config.yaml").write_text(yaml.safe_dump(config(tokenizer), sort_keys=False))
    made = {**tensors(seed), "criterion.unused": torch.zeros(1)}
    torch.save(made, folder / "valle.pth")
    return folder


def command(release: Path, out: Path) -> list[str]:
    """Return the converter's command line."""
    words = ["valle", "--model", str(release / "valle.pth"), "--config", str(release / "config.yaml")]
    return [*words, "--tokenizer", str(release / "tokenizer"), "--codec", str(release / "codec"), "--out", str(out)]


def convert(folder: Path) -> Path:
    """Write the small release and convert it; return the checkpoint."""
    assert main(command(write_release(folder / "release"), folder / "checkpoint")) == 0
    return folder / "checkpoint"
