"""The language model of small random IndexTTS-2 releases, without libraries that differ from those of the authors."""

from typing import Any

import numpy as np
import torch

WIDTH = 128
NUM_LAYERS = 2
NUM_CODES = 64
NUM_VOICE_ROWS = 4
CONFIG: dict[str, Any] = {
    "version": 2.0,
    "gpt": {
        "model_dim": WIDTH,
        "heads": 2,
        "layers": NUM_LAYERS,
        "max_mel_tokens": 60,
        "max_text_tokens": 64,
        "number_text_tokens": 500,
        "number_mel_codes": NUM_CODES + 2,
        "start_mel_token": NUM_CODES,
        "stop_mel_token": NUM_CODES + 1,
        "start_text_token": 0,
        "stop_text_token": 1,
        "condition_type": "conformer_perceiver",
        "use_mel_codes_as_input": True,
        "train_solo_embeddings": False,
    },
    "semantic_codec": {"codebook_size": NUM_CODES},
    "s2mel": {
        "preprocess_params": {
            "sr": 22050,
            "spect_params": {"n_fft": 1024, "win_length": 1024, "hop_length": 256, "n_mels": 80},
        },
        "DiT": {"num_heads": 2},
    },
    "emo_num": [1, 2, 1, 1, 1, 1, 2, 1],
}
SEED = 4
ENDING = 1.5  # factor of the end's logit, so that some replies end by themselves


def language_model_shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the language model's published tensors, without those that encode recordings."""
    gpt = CONFIG["gpt"]
    width = gpt["model_dim"]
    shapes: dict[str, tuple[int, ...]] = {
        "text_embedding.weight": (gpt["number_text_tokens"] + 1, width),
        "mel_embedding.weight": (gpt["number_mel_codes"], width),
        "text_pos_embedding.emb.weight": (gpt["max_text_tokens"] + 2, width),
        "mel_pos_embedding.emb.weight": (gpt["max_mel_tokens"] + 3, width),
        "speed_emb.weight": (2, width),
        "text_head.weight": (gpt["number_text_tokens"] + 1, width),
        "text_head.bias": (gpt["number_text_tokens"] + 1,),
        "mel_head.weight": (gpt["number_mel_codes"], width),
        "mel_head.bias": (gpt["number_mel_codes"],),
    }
    norms = ["gpt.ln_f", "final_norm"]
    for number in range(gpt["layers"]):
        layer = f"gpt.h.{number}."
        norms += [f"{layer}ln_1", f"{layer}ln_2"]
        for name, rows, columns in (
            ("attn.c_attn", 1, 3),
            ("attn.c_proj", 1, 1),
            ("mlp.c_fc", 1, 4),
            ("mlp.c_proj", 4, 1),
        ):
            shapes[f"{layer}{name}.weight"] = (rows * width, columns * width)
            shapes[f"{layer}{name}.bias"] = (columns * width,)
    return shapes | {f"{norm}.{name}": (width,) for norm in norms for name in ("weight", "bias")}


def language_model() -> dict[str, torch.Tensor]:
    """Return the language model's published tensors, identical on every machine."""
    random = np.random.Generator(np.random.PCG64(SEED))
    tensors = dict[str, torch.Tensor]()
    for name, shape in language_model_shapes().items():
        noise = random.standard_normal(shape)
        if len(shape) == 1:
            noise = 0.3 * noise if name.endswith("bias") else 1 + 0.2 * noise
        else:
            noise *= 0.5 if "emb" in name else 1.5 * shape[0] ** -0.5
        tensors[name] = torch.from_numpy(noise.astype(np.float32))
    tensors["mel_head.weight"] *= 2
    tensors["mel_head.weight"][-1] *= ENDING
    return tensors
