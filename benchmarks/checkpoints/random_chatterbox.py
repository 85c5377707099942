"""Random checkpoints in the published layout of Chatterbox (Resemble AI): small, the same on every machine.

English   t3_cfg.safetensors   s3gen.safetensors   ve.safetensors   tokenizer.json   conds.pt   voices/anna.pt
          backbone.json (not part of the published release)
Turbo     t3_turbo_v1.safetensors   s3gen_meanflow.safetensors   ve.safetensors   conds.pt   voices/anna.pt
          vocab.json   merges.txt   added_tokens.json
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.checkpoints import random_s3gen
from benchmarks.checkpoints.random_tensors import drawn_by_name, random_tensors
from stretto.convert.command import main
from stretto.families.chatterbox.convert import LLAMA_520M, published_shapes
from stretto.families.chatterbox.family import END_OF_SPEECH, END_OF_TEXT, SPACE, START_OF_TEXT, ChatterboxVocabulary
from stretto.families.chatterbox.release import FILE, HEAD, HEAD_BIAS, TURBO_FILE, VOICE_ENCODER_FILE
from stretto.families.chatterbox.turbo import GPT2_LAYER
from stretto.families.chatterbox.voices import Hearing
from stretto.families.text import BYTE_OF

SMALL: dict[str, Any] = {
    **LLAMA_520M,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
# A voice has six rows instead of 32; the number of ids is as published.
KNOWN = ChatterboxVocabulary(num_text_positions=66, num_speech_positions=260, num_voice_rows=8, max_model_len=256)
VOICES = {"default": 3, "anna": 4}  # seeds
ENDING = 3.0  # factor of the logit of the end, so that some replies end by themselves
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ,.!?'\"-"
MERGES = (("t", "h"), ("th", "e"), ("i", "n"), ("o", "u"), ("e", "r"), ("a", "n"))


def tensors(seed: int = 1) -> dict[str, np.ndarray]:
    """Return the tensors of T3 by published name."""
    made = random_tensors(published_shapes(SMALL, KNOWN), seed)
    made[HEAD][END_OF_SPEECH] *= ENDING
    return made


def voice(seed: int, num_codes: int = 15) -> dict[str, Any]:
    """Return the contents of a voice as the authors' `Conditionals.save` writes it."""
    random = np.random.Generator(np.random.PCG64(seed))
    t3 = {
        "speaker_emb": torch.from_numpy(random.standard_normal((1, 256)).astype(np.float32)),
        "clap_emb": None,
        "cond_prompt_speech_tokens": torch.from_numpy(random.integers(6561, size=(1, num_codes))),
        "cond_prompt_speech_emb": None,
        "emotion_adv": 0.5 * torch.ones(1, 1, 1),
    }
    return {"t3": t3, "gen": random_s3gen.conditions(seed, 4 + seed, is_odd=seed % 2 == 0)}


def hearing(width: int = 128, num_layers: int = 2) -> dict[str, torch.Tensor]:
    """Return the tensors of the networks that encode recordings, each drawn by its name.

    Names are published ones, those of `ve.safetensors` after `ve.`. Only the tokenizer is smaller than the published
    one: `width` 1280 and `num_layers` 6.
    """
    with torch.device("meta"):
        shapes = {name: tuple(each.shape) for name, each in Hearing(width, num_layers, 192, 80).state_dict().items()}
    shapes |= {"ve.similarity_weight": (1,), "ve.similarity_bias": (1,)}
    found = {name: torch.from_numpy(drawn_by_name(name, shape)) for name, shape in shapes.items()}
    found["tokenizer._mel_filters"] = torch.ones(2, 3)
    return found | {"speaker_encoder.head.bn1.num_batches_tracked": torch.tensor(1)}


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of letters and some pairs, split at spaces and punctuation, with the published marker ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    spelled = ["[STOP]", "[UNK]", SPACE, *LETTERS, *("".join(pair) for pair in MERGES)]
    ids = {token: token_id for token_id, token in enumerate(spelled)} | {"[START]": START_OF_TEXT}
    assert ids["[STOP]"] == END_OF_TEXT
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=list(MERGES), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["[STOP]", "[UNK]", SPACE, "[START]"])
    tokenizer.save(str(folder / "tokenizer.json"))


def write_release(folder: Path, seed: int = 1) -> Path:
    """Write a release as published to `folder`."""
    from safetensors.numpy import save_file
    from safetensors.torch import save_file as save_torch_file

    (folder / "voices").mkdir(parents=True)
    save_file(tensors(seed), folder / "t3_cfg.safetensors")
    networks = hearing()
    encoder = {name: tensor for name, tensor in networks.items() if name.startswith("ve.")}
    others = {name: tensor for name, tensor in networks.items() if name not in encoder}
    save_torch_file(random_s3gen.tensors() | others, folder / FILE)
    save_torch_file({name.removeprefix("ve."): each for name, each in encoder.items()}, folder / VOICE_ENCODER_FILE)
    write_tokenizer(folder)
    for name, voice_seed in VOICES.items():
        torch.save(voice(voice_seed), folder / ("conds.pt" if name == "default" else f"voices/{name}.pt"))
    (folder / "backbone.json").write_text(json.dumps(SMALL))
    return folder


def command(release: Path, out: Path) -> list[str]:
    """Return the converter's command line."""
    model, backbone = str(release / "t3_cfg.safetensors"), str(release / "backbone.json")
    words = ["chatterbox", "--model", model, "--tokenizer", str(release), "--backbone", backbone]
    return [*words, "--codec", str(release), "--out", str(out)]


def convert(folder: Path) -> Path:
    """Write the small release and convert it; return the checkpoint."""
    assert main(command(write_release(folder / "release"), folder / "checkpoint")) == 0
    return folder / "checkpoint"


TURBO_WIDTH, TURBO_LAYERS, TURBO_POSITIONS, HEAD_WIDTH = 128, 2, 512, 64
TAGS = ("[clear throat]", "[laugh]", "[sigh]")
TURBO_VOICES = {"default": 5, "anna": 6}  # seeds


def turbo_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of a small Turbo's T3 by published name."""
    width, num_text_ids, num_speech_ids = TURBO_WIDTH, 256 + len(MERGES) + len(TAGS), END_OF_SPEECH + 1
    layers = {
        f"tfmr.h.{layer}.{name}": tuple(width * times for times in shape)
        for layer in range(TURBO_LAYERS)
        for name, shape in GPT2_LAYER.items()
    }
    return {
        "tfmr.wte.weight": (num_text_ids, width),
        "tfmr.wpe.weight": (TURBO_POSITIONS, width),
        **layers,
        "tfmr.ln_f.weight": (width,),
        "tfmr.ln_f.bias": (width,),
        "cond_enc.spkr_enc.weight": (width, 256),
        "cond_enc.spkr_enc.bias": (width,),
        "text_emb.weight": (num_text_ids, width),
        "speech_emb.weight": (num_speech_ids, width),
        "text_head.weight": (num_text_ids, width),
        HEAD: (num_speech_ids, width),
        HEAD_BIAS: (num_speech_ids,),
    }


def turbo_tensors(seed: int = 1) -> dict[str, np.ndarray]:
    """Return the tensors of a small Turbo's T3 by published name."""
    random, made = np.random.Generator(np.random.PCG64(seed)), dict[str, np.ndarray]()
    for name, shape in turbo_shapes().items():
        noise = random.standard_normal(shape)
        if len(shape) == 1:
            noise = 0.3 * noise if name.endswith("bias") else 1 + 0.2 * noise
        else:
            noise *= 0.5 if "emb" in name or "tfmr.w" in name else 1.5 * shape[0] ** -0.5
        made[name] = noise.astype(np.float32)
    made[HEAD][END_OF_SPEECH] *= ENDING
    return made


def write_turbo_tokenizer(folder: Path) -> None:
    """Write the files of a byte-level BPE, with tags as added tokens."""
    spelled = [*BYTE_OF, *("".join(pair) for pair in MERGES)]
    (folder / "vocab.json").write_text(json.dumps({token: at for at, token in enumerate(spelled)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in MERGES))
    added = {tag: len(spelled) + at for at, tag in enumerate(TAGS)}
    (folder / "added_tokens.json").write_text(json.dumps(added))


def write_turbo(folder: Path, seed: int = 1) -> Path:
    """Write a small release of Turbo as published to `folder`."""
    from safetensors.numpy import save_file
    from safetensors.torch import save_file as save_torch_file

    (folder / "voices").mkdir(parents=True)
    save_file(turbo_tensors(seed), folder / "t3_turbo_v1.safetensors")
    networks = hearing()
    others = {name: tensor for name, tensor in networks.items() if not name.startswith("ve.")}
    encoder = {name.removeprefix("ve."): each for name, each in networks.items() if name not in others}
    save_torch_file(random_s3gen.tensors(random_s3gen.MEANFLOW) | others, folder / TURBO_FILE)
    save_torch_file(encoder, folder / VOICE_ENCODER_FILE)
    write_turbo_tokenizer(folder)
    for name, voice_seed in TURBO_VOICES.items():
        torch.save(voice(voice_seed), folder / ("conds.pt" if name == "default" else f"voices/{name}.pt"))
    return folder


def convert_turbo(folder: Path) -> Path:
    """Write the small Turbo and convert it; return the checkpoint."""
    words = ["chatterbox", "--model", str(write_turbo(folder / "release")), "--out", str(folder / "checkpoint")]
    assert main(words) == 0
    return folder / "checkpoint"
