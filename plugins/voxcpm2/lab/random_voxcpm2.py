"""Small randomly initialised VoxCPM2 releases in the published layout, from language models to tokenizer.

    python -m plugins.voxcpm2.lab.random_voxcpm2 FOLDER [KIND]

A release has the language models, the diffusion head, the AudioVAE and the tokenizer. KIND is `plain` (options as
published), `scaled` (muP scales and long-range rotation factors) or `wide` (few layers of the published widths).
"""

import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

NUM_TOKENS = 160
KINDS = ("plain", "scaled", "wide")
VAE: dict[str, Any] = {
    "encoder_dim": 2,
    "encoder_rates": [2, 5, 8, 8],
    "latent_dim": 8,
    "decoder_dim": 128,
    "decoder_rates": [8, 6, 5, 2, 2, 2],
    "sample_rate": 16000,
    "out_sample_rate": 48000,
    "sr_bin_boundaries": [20000, 30000, 40000],
}
HEAD_DIM = 32
RECORDINGS = {"reference": 3 * 2560 + 7, "prompt": 5 * 2560 - 9}  # samples at 16 kHz
# Mean of the stop head's second row, chosen so that the model stops after some patches, as a trained one does.
STOPS = {"plain": 0.0345, "scaled": 0.0320, "wide": 0.0010}
# Gain of the last convolution, small enough to keep samples within [-1, 1].
LAST_GAIN = 0.01


def config(kind: str = "plain") -> dict[str, Any]:
    """Return the contents of the release's config.json."""
    is_scaled = kind == "scaled"
    is_wide = kind == "wide"
    steps = range(HEAD_DIM // 2)
    lm = {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 2048 if is_wide else 48,
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        "num_attention_heads": 4,
        "num_hidden_layers": 1 if is_wide else 3,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "type": "longrope",
            "long_factor": [1 + 0.05 * step for step in steps],
            "short_factor": [1 + 0.02 * step for step in steps],
            "original_max_position_embeddings": 256 if is_scaled else 512,
        },
        "vocab_size": NUM_TOKENS,
        "use_mup": is_scaled,
        "scale_emb": 2,
        "dim_model_base": 256,
        "scale_depth": 1.4,
        "kv_channels": HEAD_DIM,
    }
    local: dict[str, Any] = {"hidden_dim": 32, "ffn_dim": 64, "num_heads": 4, "num_layers": 2, "kv_channels": HEAD_DIM}
    if is_wide:
        local |= {"hidden_dim": 1024, "num_layers": 1}
    return {
        "architecture": "voxcpm2",
        "lm_config": lm,
        "patch_size": 4,
        "feat_dim": VAE["latent_dim"],
        "residual_lm_num_layers": 1 if is_wide else 2,
        "residual_lm_no_rope": True,
        "scalar_quantization_latent_dim": 24,
        "scalar_quantization_scale": 9,
        "encoder_config": local,
        "dit_config": {
            **local,
            "num_layers": 1 + local["num_layers"],
            "cfm_config": {"sigma_min": 1e-6, "solver": "euler"},
        },
        "audio_vae_config": dict(VAE),
        "max_length": 256,
        "device": "cpu",
        "dtype": "float32",
    }


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a linear layer with a bias."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def stack(name: str, lm: Mapping[str, Any], width: int, inner: int, heads: int, layers: int) -> dict[str, Any]:
    """Return the shapes of a transformer with the key heads and head width of the language model `lm`."""
    queried = heads * lm["kv_channels"]
    held = lm["num_key_value_heads"] * lm["kv_channels"]
    found: dict[str, tuple[int, ...]] = {f"{name}.norm.weight": (width,)}
    for index in range(layers):
        layer = f"{name}.layers.{index}."
        for part, rows in (("q", queried), ("k", held), ("v", held)):
            found[f"{layer}self_attn.{part}_proj.weight"] = (rows, width)
        found[f"{layer}self_attn.o_proj.weight"] = (width, queried)
        found |= {f"{layer}mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        found[f"{layer}mlp.down_proj.weight"] = (width, inner)
        found |= {f"{layer}{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    return found


def lm_shapes(record: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of `model.safetensors`."""
    lm = record["lm_config"]
    words = record["feat_dim"]
    width = lm["hidden_size"]
    inner = lm["intermediate_size"]
    heads = lm["num_attention_heads"]
    locals_ = [(side, record[key]) for side, key in (("encoder", "encoder_config"), ("decoder", "dit_config"))]
    (_, encoder), (_, dit) = locals_
    found = stack("base_lm", lm, width, inner, heads, lm["num_hidden_layers"])
    found["base_lm.embed_tokens.weight"] = (lm["vocab_size"], width)
    found |= stack("residual_lm", lm, width, inner, heads, record["residual_lm_num_layers"])
    for name, each in (("feat_encoder.encoder", encoder), ("feat_decoder.estimator.decoder", dit)):
        found |= stack(name, lm, each["hidden_dim"], each["ffn_dim"], each["num_heads"], each["num_layers"])
    found["feat_encoder.special_token"] = (1, 1, 1, encoder["hidden_dim"])
    found |= linear("feat_encoder.in_proj", encoder["hidden_dim"], words)
    head = "feat_decoder.estimator"
    wide = dit["hidden_dim"]
    found |= linear(f"{head}.in_proj", wide, words) | linear(f"{head}.cond_proj", wide, words)
    found |= linear(f"{head}.out_proj", words, wide)
    for time in ("time_mlp", "delta_time_mlp"):
        found |= linear(f"{head}.{time}.linear_1", wide, wide) | linear(f"{head}.{time}.linear_2", wide, wide)
    narrow = record["scalar_quantization_latent_dim"]
    found |= linear("fsq_layer.in_proj", narrow, width) | linear("fsq_layer.out_proj", width, narrow)
    found |= linear("enc_to_lm_proj", width, encoder["hidden_dim"])
    found |= linear("lm_to_dit_proj", wide, width) | linear("res_to_dit_proj", wide, width)
    found |= linear("fusion_concat_proj", width, 2 * width) | linear("stop_proj", width, width)
    return found | {"stop_head.weight": (2, width)}


def convolution(name: str, rows: int, columns: int, kernel: int, bias: int | None = None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a weight-normalised convolution; `bias` is the number of outputs if it is transposed."""
    return {
        f"{name}.weight_g": (rows, 1, 1),
        f"{name}.weight_v": (rows, columns, kernel),
        f"{name}.bias": (rows if bias is None else bias,),
    }


def unit_shapes(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a residual unit with a depthwise convolution."""
    found: dict[str, tuple[int, ...]] = {f"{name}.block.{at}.alpha": (1, channels, 1) for at in (0, 2)}
    found |= convolution(f"{name}.block.1", channels, 1, 7)
    return found | convolution(f"{name}.block.3", channels, channels, 1)


def vae_shapes(vae: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of `audiovae.pth`."""
    channels = vae["encoder_dim"]
    words = vae["latent_dim"]
    found = convolution("encoder.block.0", channels, 1, 7)
    for number, rate in enumerate(vae["encoder_rates"], 1):
        name = f"encoder.block.{number}.block"
        for at in range(3):
            found |= unit_shapes(f"{name}.{at}", channels)
        found[f"{name}.3.alpha"] = (1, channels, 1)
        found |= convolution(f"{name}.4", 2 * channels, channels, 2 * rate)
        channels *= 2
    found |= convolution("encoder.fc_mu", words, channels, 3) | convolution("encoder.fc_logvar", words, channels, 3)
    channels = vae["decoder_dim"]
    num_bins = len(vae["sr_bin_boundaries"]) + 1
    found |= convolution("decoder.model.0", words, 1, 7) | convolution("decoder.model.1", channels, words, 1)
    for number, rate in enumerate(vae["decoder_rates"], 2):
        for table in ("scale_embed", "bias_embed"):
            found[f"decoder.sr_cond_model.{number}.{table}.weight"] = (num_bins, channels)
        name = f"decoder.model.{number}.block"
        found[f"{name}.0.alpha"] = (1, channels, 1)
        found |= convolution(f"{name}.1", channels, channels // 2, 2 * rate, bias=channels // 2)
        channels //= 2
        for at in (2, 3, 4):
            found |= unit_shapes(f"{name}.{at}", channels)
    last = 2 + len(vae["decoder_rates"])
    found[f"decoder.model.{last}.alpha"] = (1, channels, 1)
    found |= convolution(f"decoder.model.{last + 1}", 1, channels, 7)
    return found | {"decoder.sr_bin_boundaries": (len(vae["sr_bin_boundaries"]),)}


def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a random tensor, float32, that depends only on its name; its values are about as large as trained ones.

    numpy draws it in float64, because numbers from `torch.randn` depend on the processor.
    """
    return torch.from_numpy(scaled(name, np.random.default_rng(crc32(name.encode())).standard_normal(shape))).float()


def scaled(name: str, random: np.ndarray) -> np.ndarray:
    """Return normal random numbers at the mean and deviation of the tensor with this name."""
    if name.endswith("alpha"):
        return 1 + 0.3 * random.clip(-2, 2)
    if name.endswith(("norm.weight", "scale_embed.weight")):
        return 1 + 0.2 * random.clip(-2, 2)
    if name.endswith("weight_g"):
        return 0.9 + 0.2 * random.clip(-2, 2)
    if name.endswith((".bias", "bias_embed.weight")):
        return 0.1 * random
    if name.endswith(("special_token", "embed_tokens.weight")):
        return random
    return random * math.prod(random.shape[1:]) ** -0.5


def recording(name: str) -> np.ndarray:
    """Return noise that serves as a recording, float32 [n] at 16 kHz."""
    random = np.random.default_rng(crc32(name.encode()))
    return (0.1 * random.standard_normal(RECORDINGS[name])).astype(np.float32)


def inputs(kinds: Iterable[str]) -> dict[str, np.ndarray | Tensor]:
    """Return all random numbers of releases and recordings by name."""
    found: dict[str, np.ndarray | Tensor] = {name: recording(name) for name in RECORDINGS}
    for kind in kinds:
        for part in tensors(kind):
            found |= {f"{kind}.{name}": values for name, values in part.items()}
    return found


def write_tokenizer(folder: Path) -> None:
    """Write a unigram tokenizer with letters, two Chinese characters, and a token that joins both."""
    pieces = ["<unk>", "<s>", "</s>", "▁", *".,!()", *map(chr, range(97, 123)), "你", "好", "你好", "▁the", "ing"]
    pieces += [f"<filler{index}>" for index in range(NUM_TOKENS - len(pieces))]
    made = Tokenizer(models.Unigram([(piece, -1.0 - 0.001 * at) for at, piece in enumerate(pieces)], unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    made.save(str(folder / "tokenizer.json"))


def tensors(kind: str = "plain") -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the weights of the language models and the head, and those of the AudioVAE."""
    weights = {name: tensor(name, shape) for name, shape in lm_shapes(config(kind)).items()}
    weights["stop_proj.bias"] = torch.ones_like(weights["stop_proj.bias"])
    weights["stop_head.weight"][1] -= STOPS[kind]
    vae = {name: tensor(name, shape) for name, shape in vae_shapes(VAE).items()}
    vae[f"decoder.model.{3 + len(VAE['decoder_rates'])}.weight_g"] *= LAST_GAIN
    vae["decoder.sr_bin_boundaries"] = torch.tensor(VAE["sr_bin_boundaries"], dtype=torch.int32)
    return weights, vae


def write_release(folder: Path, kind: str = "plain") -> Path:
    """Write a release and return its folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config(kind), indent=1))
    write_tokenizer(folder)
    weights, vae = tensors(kind)
    save_file(weights, folder / "model.safetensors")
    torch.save({"state_dict": vae}, folder / "audiovae.pth")
    return folder


if __name__ == "__main__":
    print(json.dumps({"written": str(write_release(Path(sys.argv[1]), *sys.argv[2:]))}))
