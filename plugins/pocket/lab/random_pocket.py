"""Randomly initialised Pocket TTS releases in the published layout: language model, codec, tokenizer and voices.

    python -m plugins.pocket.lab.random_pocket FOLDER [KIND]

The kind `published` has the dimensions of Kyutai's `english` (110 M parameters); `published_2m`, `published_7m` and
`published_18m` those of its small English models. The others are smaller still. They differ as
the published sizes do: `english` (LSD head), `english_2m` (pointwise head, grouped heads of another width, a low-rank
table) and `english_18m` (drifting head). `english_2m` and `english_18m` have their own decoder and store their
tokenizer as a SentencePiece model.
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
import yaml
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from lab.releases.random_tensors import sentencepiece_model

NUM_TOKENS = 200
NUM_WORDS = 8
NUM_FREQUENCIES = 128
VOICES = {"alba": 21, "jean": 9}
RECORDING_S = 1.3
SEANET: dict[str, Any] = {
    "dimension": 24,
    "channels": 1,
    "n_filters": 4,
    "n_residual_layers": 1,
    "ratios": [6, 5, 4],
    "kernel_size": 7,
    "residual_kernel_size": 3,
    "last_kernel_size": 3,
    "dilation_base": 2,
    "pad_mode": "constant",
    "compress": 2,
}
STACK: dict[str, Any] = {
    "d_model": 24,
    "num_heads": 4,
    "num_layers": 2,
    "layer_scale": 0.01,
    "context": 20,
    "dim_feedforward": 48,
    "input_dimension": 24,
    "output_dimensions": [24],
}
SMALL: dict[str, Any] = {"d_model": 64, "hidden_scale": 4, "max_period": 10000, "num_heads": 2, "num_layers": 3}
GROUPED = SMALL | {"d_model": 56, "num_heads": 3, "attn_dim": 96, "num_kv_heads": 1, "dim_feedforward": 40}
OWN_DECODER = {
    "decoder_seanet": SEANET | {"kernel_size": 3, "n_filters": 8},
    "decoder_transformer": STACK | {"num_layers": 1, "context": 12},
}
# End thresholds that the end logit of some frame in a reply exceeds, as with a trained model.
THRESHOLDS = {"english": 0.95, "english_2m": 1.34, "english_18m": 1.84}
# Factors that make latents about as large as trained ones and keep samples within [-1, 1].
# The last convolution of the codec is number 11 after three ratios, and number 14 after four.
SMALLER = {"flow_lm.flow_net.final_layer.linear.weight": 0.15}
SMALLER |= {f"mimi.decoder.model.{number}.conv.weight": 0.2 for number in (11, 14)}
TOKENIZERS = {
    False: {"tokenizer": "sentencepiece", "tokenizer_path": "tokenizer.model"},
    True: {"tokenizer": "tokenizers", "tokenizer_path": "tokenizer.json"},
}
REPLACED = {"’": "'", "—": ","}


PUBLISHED_SEANET = SEANET | {"dimension": 512, "n_filters": 64}
PUBLISHED_STACK = STACK | {
    "d_model": 512,
    "num_heads": 8,
    "context": 250,
    "dim_feedforward": 2048,
    "input_dimension": 512,
    "output_dimensions": [512],
}


PUBLISHED_LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "published_2m": {
        "flow": {"depth": 4, "dim": 64, "type": "pointwise"},
        "transformer": {"d_model": 112, "num_heads": 3, "dim_feedforward": 96, "attn_dim": 192, "num_kv_heads": 1},
        "rank": 32,
    },
    "published_7m": {
        "flow": {"depth": 4, "dim": 192, "type": "drifting"},
        "transformer": {"d_model": 224, "num_heads": 8, "attn_dim": 512, "num_kv_heads": 2},
        "rank": 64,
    },
    "published_18m": {
        "flow": {"depth": 4, "dim": 192, "type": "drifting"},
        "transformer": {"d_model": 512, "num_heads": 8},
        "rank": None,
    },
}


def published(kind: str = "published") -> dict[str, Any]:
    """Return a release's YAML record with the dimensions of Kyutai's `english`, or of a small English model."""
    record = config("english" if kind == "published" else "english_2m")
    lm = record["flow_lm"]
    mimi = record["mimi"]
    mimi |= {"inner_dim": 32, "seanet": PUBLISHED_SEANET, "transformer": PUBLISHED_STACK}
    if kind == "published":
        lm["flow"] |= {"depth": 6, "dim": 512}
        lm["transformer"] = SMALL | {"d_model": 1024, "num_heads": 16, "num_layers": 6}
        lm["lookup_table"] |= {"dim": 1024, "n_bins": 4000}
        mimi |= {"outer_dim": 512, "quantizer": {"dimension": 32, "output_dimension": 512}}
        return record
    sizes = PUBLISHED_LANGUAGE_MODELS[kind]
    width = sizes["transformer"]["d_model"]
    lm |= {"flow": sizes["flow"], "z_dim": 64}
    lm["transformer"] = {"hidden_scale": 1, "max_period": 10000, "num_layers": 8} | sizes["transformer"]
    lm["lookup_table"] |= {"dim": width, "n_bins": 4000, "rank": sizes["rank"]}
    mimi |= {"outer_dim": 128, "quantizer": {"dimension": 32, "output_dimension": 128}}
    mimi["decoder_seanet"] = SEANET | {
        "dimension": 128,
        "n_filters": 24 if kind == "published_2m" else 32,
        "kernel_size": 3,
    }
    mimi["decoder_transformer"] = PUBLISHED_STACK | {
        "d_model": 128,
        "num_heads": 4,
        "num_layers": 4 if kind == "published_2m" else 12,
        "context": 50,
        "dim_feedforward": 384,
        "input_dimension": 128,
        "output_dimensions": [128],
    }
    return record


def config(kind: str) -> dict[str, Any]:
    """Return the release's YAML record."""
    if kind.startswith("published"):
        return published(kind)
    flow = {"english": "lsd", "english_2m": "pointwise", "english_18m": "drifting"}[kind]
    stack = GROUPED if kind == "english_2m" else SMALL
    table = {"dim": stack["d_model"], "n_bins": NUM_TOKENS, **TOKENIZERS[kind == "english"]}
    if kind == "english_2m":
        table["rank"] = 16
    mimi = {
        "dtype": "float32",
        "sample_rate": 24000,
        "inner_dim": NUM_WORDS,
        "outer_dim": 24,
        "channels": 1,
        "frame_rate": 12.5,
        "seanet": SEANET,
        "transformer": STACK,
        "quantizer": {"dimension": NUM_WORDS, "output_dimension": 24},
        **({} if kind == "english" else OWN_DECODER),
    }
    return {
        "default_temperature": 0.3,
        "replace_characters": REPLACED,
        "flow_lm": {
            "insert_bos_before_voice": True,
            "dtype": "float32",
            "flow": {"depth": 3, "dim": 32, "type": flow},
            "transformer": stack,
            "lookup_table": table,
            "z_dim": None if kind == "english" else 24,
        },
        "mimi": mimi,
        "default_eos_threshold": THRESHOLDS[kind],
    }


def shapes(record: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return a dict from published tensor name to shape for a release."""
    lm = lm_shapes(record["flow_lm"], record["mimi"]["quantizer"]["dimension"])
    return {f"flow_lm.{name}": shape for name, shape in lm.items()} | {
        f"mimi.{name}": shape for name, shape in mimi_shapes(record["mimi"]).items()
    }


def lm_shapes(lm: Mapping[str, Any], num_words: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the language model."""
    stack = lm["transformer"]
    flow = lm["flow"]
    table = lm["lookup_table"]
    width = stack["d_model"]
    state = lm["z_dim"] or stack["d_model"]
    rank = table.get("rank")
    queried = stack.get("attn_dim") or width
    held = queried // stack["num_heads"] * (stack.get("num_kv_heads") or stack["num_heads"])
    inner = stack.get("dim_feedforward") or width * stack["hidden_scale"]
    c = flow["dim"]
    found: dict[str, tuple[int, ...]] = {
        "emb_mean": (num_words,),
        "emb_std": (num_words,),
        "bos_emb": (num_words,),
        "bos_before_voice": (1, 1, width),
        "speaker_proj_weight": (width, num_words),
        "input_linear.weight": (width, num_words),
        "out_norm.weight": (width,),
        "out_norm.bias": (width,),
        "out_eos.weight": (1, state),
        "out_eos.bias": (1,),
        "conditioner.embed.weight": (table["n_bins"] + 1, rank or width),
        **({"conditioner.proj.weight": (width, rank)} if rank else {}),
        **({"z_proj.weight": (state, width)} if lm["z_dim"] else {}),
    }
    for index in range(stack["num_layers"]):
        name = f"transformer.layers.{index}."
        found |= layer_shapes(name, width, inner, queried, held)
    times = 2 if flow["type"] == "lsd" else 0
    return found | flow_shapes("flow_net.", flow["depth"], c, state, num_words, times)


def flow_shapes(head: str, depth: int, c: int, state: int, words: int, times: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a flow head whose names begin with `head`.

    Args:
        head: Prefix of the names.
        depth: Number of blocks.
        c: Width.
        state: Width of its condition.
        words: Number of values of a latent.
        times: Number of embedded times.
    """
    found = linear(f"{head}cond_embed", c, state) | linear(f"{head}input_proj", c, words)
    for index in range(depth):
        name = f"{head}res_blocks.{index}."
        found |= linear(f"{name}mlp.0", c, c) | linear(f"{name}mlp.2", c, c)
        found |= linear(f"{name}adaLN_modulation.1", 3 * c, c)
        found |= {f"{name}in_ln.weight": (c,), f"{name}in_ln.bias": (c,)}
    found |= linear(f"{head}final_layer.linear", words, c)
    found |= linear(f"{head}final_layer.adaLN_modulation.1", 2 * c, c)
    for index in range(times):
        name = f"{head}time_embed.{index}."
        found |= {f"{name}freqs": (NUM_FREQUENCIES,), f"{name}mlp.3.alpha": (c,)}
        found |= linear(f"{name}mlp.0", c, 2 * NUM_FREQUENCIES) | linear(f"{name}mlp.2", c, c)
    return found


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a linear layer with a bias."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def layer_shapes(name: str, width: int, inner: int, queried: int, held: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a transformer layer."""
    return {
        f"{name}self_attn.in_proj.weight": (queried + 2 * held, width),
        f"{name}self_attn.out_proj.weight": (width, queried),
        f"{name}linear1.weight": (inner, width),
        f"{name}linear2.weight": (width, inner),
        **{f"{name}{norm}.{part}": (width,) for norm in ("norm1", "norm2") for part in ("weight", "bias")},
    }


def mimi_shapes(mimi: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the codec, encoder included."""
    own = mimi.get("decoder_seanet") or mimi["seanet"]
    outer = mimi["quantizer"]["output_dimension"]
    found: dict[str, tuple[int, ...]] = {
        "quantizer.output_proj.weight": (outer, mimi["quantizer"]["dimension"], 1),
        "upsample.convtr.convtr.weight": (outer, 1, 32),
        "downsample.conv.conv.weight": (mimi["inner_dim"], mimi["seanet"]["dimension"], 32),
    }
    stacks = {"encoder": mimi["transformer"], "decoder": mimi.get("decoder_transformer") or mimi["transformer"]}
    for side, stack in stacks.items():
        for index in range(stack["num_layers"]):
            name = f"{side}_transformer.transformer.layers.{index}."
            width = stack["d_model"]
            found |= layer_shapes(name, width, stack["dim_feedforward"], width, width)
            found |= {f"{name}layer_scale_{k}.scale": (width,) for k in (1, 2)}
    return found | decoder_shapes(own) | encoder_shapes(mimi["seanet"])


def convolution(name: str, *shape: int, bias: int | None = None) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a convolution; `bias` is its number of outputs if that differs from `shape[0]`."""
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0] if bias is None else bias,)}


def decoder_shapes(seanet: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the convolutions from latents to samples."""
    channels = seanet["n_filters"] << len(seanet["ratios"])
    kernel = seanet["kernel_size"]
    found = convolution("decoder.model.0.conv", channels, seanet["dimension"], kernel)
    for number, ratio in enumerate(seanet["ratios"]):
        at = 2 + 3 * number
        found |= convolution(f"decoder.model.{at}.convtr", channels, channels // 2, 2 * ratio, bias=channels // 2)
        channels //= 2
        found |= residual_shapes(f"decoder.model.{at + 1}.", channels, seanet)
    last = 2 + 3 * len(seanet["ratios"])
    return found | convolution(f"decoder.model.{last}.conv", 1, channels, seanet["last_kernel_size"])


def encoder_shapes(seanet: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the convolutions from samples to latents."""
    channels = seanet["n_filters"]
    found = convolution("encoder.model.0.conv", channels, 1, seanet["kernel_size"])
    for number, ratio in enumerate(reversed(seanet["ratios"])):
        at = 1 + 3 * number
        found |= residual_shapes(f"encoder.model.{at}.", channels, seanet)
        found |= convolution(f"encoder.model.{at + 2}.conv", 2 * channels, channels, 2 * ratio)
        channels *= 2
    last = 2 + 3 * len(seanet["ratios"])
    return found | convolution(f"encoder.model.{last}.conv", seanet["dimension"], channels, seanet["last_kernel_size"])


def residual_shapes(name: str, channels: int, seanet: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a residual block."""
    inner = channels // seanet["compress"]
    wide = convolution(f"{name}block.1.conv", inner, channels, seanet["residual_kernel_size"])
    return wide | convolution(f"{name}block.3.conv", channels, inner, 1)


def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a random tensor, float32, that depends only on its name; its values are about as large as trained ones.

    numpy draws it in float64, because numbers from `torch.randn` depend on the processor.
    """
    return torch.from_numpy(scaled(name, np.random.default_rng(crc32(name.encode())).standard_normal(shape))).float()


def scaled(name: str, random: np.ndarray) -> np.ndarray:
    """Return normal random numbers at the mean and deviation of the tensor with this name."""
    if name.endswith("freqs"):
        return np.exp(-np.arange(len(random)) / len(random) * 9.210340371976184)
    if name.endswith(("emb_std", "alpha")) or (name.endswith("weight") and random.ndim == 1):
        return 1 + 0.2 * random.clip(-2, 2)
    if name.endswith(("layer_scale_1.scale", "layer_scale_2.scale")):
        return np.full(random.shape, 0.3)
    if name.endswith((".bias", "emb_mean")):
        return 0.05 * random
    if name.endswith(("bos_emb", "embed.weight", "bos_before_voice")):
        return random
    return SMALLER.get(name, 1.0) * random * math.prod(random.shape[1:]) ** -0.5


def write_tokenizer(folder: Path, table: Mapping[str, Any]) -> None:
    """Write a unigram tokenizer with punctuation, letters and filler pieces."""
    pieces = [
        "<unk>",
        "▁",
        *".!?,;:'-",
        *map(chr, range(97, 123)),
        *map(chr, range(65, 91)),
        "the",
        "▁the",
        "▁a",
        "ing",
    ]
    pieces += [f"<filler{index}>" for index in range(table["n_bins"] - len(pieces))]
    scored = [(piece, -1.0 - 0.001 * at) for at, piece in enumerate(pieces)]
    if table["tokenizer"] == "sentencepiece":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(scored))
        return
    made = Tokenizer(models.Unigram(scored, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    made.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    made.save(str(folder / "tokenizer.json"))


def recording() -> np.ndarray:
    """Return a recording of a voice, float32 [n] at 24 kHz: tones that change every 100 ms, then a quiet end."""
    time = np.arange(int(RECORDING_S * 24000)) / 24000
    pitch = np.random.default_rng(5).uniform(90, 400, len(time) // 2400 + 1).repeat(2400)[: len(time)]
    phase = 2 * np.pi * np.cumsum(pitch) / 24000
    tones = sum(np.sin(k * phase) / k for k in (1, 2, 3, 5))
    return (0.2 * tones * np.where(time < RECORDING_S - 0.25, 1, 1e-3)).astype(np.float32)


def voice_rows(record: Mapping[str, Any], name: str) -> Tensor:
    """Return the embedded rows [n, W] of a voice: the model's begin-of-voice embedding, then random rows."""
    width = record["flow_lm"]["transformer"]["d_model"]
    begin = tensor("flow_lm.bos_before_voice", (1, 1, width))[0]
    return torch.cat([begin, 0.3 * tensor(f"voice {name}", (VOICES[name] - 1, width))])


def tensors(kind: str) -> dict[str, Tensor]:
    """Return the weights of a release."""
    return {name: tensor(name, shape) for name, shape in shapes(config(kind)).items()}


def inputs(kinds: Iterable[str]) -> dict[str, np.ndarray | Tensor]:
    """Return all random numbers of releases, voices and the recording by name."""
    found: dict[str, np.ndarray | Tensor] = {"recording": recording()}
    for kind in kinds:
        found |= {f"{kind}.{name}": values for name, values in tensors(kind).items()}
        found |= {f"{kind}.voice {name}": voice_rows(config(kind), name) for name in VOICES}
    return found


def write_release(folder: Path, kind: str = "english", clones: bool = True) -> Path:
    """Write a release and return its folder; if not `clones`, the cloning tensors are zeros."""
    from stretto_pocket.pocket_tts.convert import CLONING, Shape
    from stretto_pocket.pocket_tts.voices import VoiceBackbone

    record = config(kind)
    (folder / "embeddings").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(record, allow_unicode=True))
    write_tokenizer(folder, record["flow_lm"]["lookup_table"])
    weights = tensors(kind)
    for name in () if clones else [name for name in weights if name.startswith(CLONING)]:
        weights[name] = torch.zeros_like(weights[name])
    save_file(weights, folder / "model.safetensors")
    shape = Shape(record)
    backbone = VoiceBackbone(weights, shape.num_layers, shape.head_dim, shape.kv_heads, shape.theta)
    for name in VOICES:
        save_file(keys_and_values(backbone, voice_rows(record, name)), folder / "embeddings" / f"{name}.safetensors")
    return folder


def keys_and_values(backbone: Any, rows: Tensor) -> dict[str, Tensor]:
    """Return the published tensors of a voice; unused cache rows are NaN."""
    found = dict[str, Tensor]()
    rows = rows.double()
    for layer in range(backbone.num_layers):
        normed = backbone.norm(layer, "norm1", rows)
        _, key, value = backbone.projected(layer, normed)
        cache = torch.full((2, 1, len(rows) + 3, *key.shape[1:]), torch.nan)
        cache[0, 0, : len(rows)] = key
        cache[1, 0, : len(rows)] = value
        name = f"transformer.layers.{layer}.self_attn"
        found |= {f"{name}/cache": cache, f"{name}/offset": torch.tensor([len(rows)])}
        rows = backbone.fed_forward(layer, rows + backbone.attended(layer, normed))
    return found


if __name__ == "__main__":
    print(json.dumps({"written": str(write_release(Path(sys.argv[1]), (*sys.argv[2:], "english")[0]))}))
