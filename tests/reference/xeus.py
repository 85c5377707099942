"""Slow, plain XEUS in float64, one frame at a time, from the tensors and config.yaml of a release.

Formulas of espnet2/asr/frontend/cnn.py, espnet2/asr/encoder/e_branchformer_encoder.py, espnet2/asr/layers/cgmlp.py and
ConvolutionalPositionalEmbedding in espnet/nets/pytorch_backend/transformer/embedding.py.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

Tensors = Mapping[str, Any]
erf = np.vectorize(math.erf)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + erf(x / math.sqrt(2)))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int = 1, groups: int = 1) -> np.ndarray:
    """Convolve [T, C] to [T', C'] with `weight` [C', C / groups, K], without padding."""
    kernel, rows = weight.shape[2], []
    for start in range(0, len(x) - kernel + 1, stride):
        window = x[start : start + kernel].reshape(kernel, groups, -1)
        taps = weight.reshape(groups, -1, *weight.shape[1:])
        rows.append(np.einsum("kgi,goik->go", window, taps).reshape(-1) + bias)
    return np.array(rows)


def norm(x: np.ndarray, tensors: Tensors, name: str, eps: float = 1e-12) -> np.ndarray:
    """Apply a layer norm over the last axis."""
    plain = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return plain * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def linear(x: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]


def depthwise(x: np.ndarray, tensors: Tensors, name: str) -> np.ndarray:
    """Apply a depthwise convolution, with zero padding that keeps the number of frames."""
    weight = tensors[f"{name}.weight"]
    padded = np.pad(x, ((weight.shape[2] // 2, weight.shape[2] // 2), (0, 0)))
    return convolve(padded, weight, tensors[f"{name}.bias"], groups=x.shape[1])


def front_end(pcm: np.ndarray, tensors: Tensors, config: Mapping[str, Any]) -> np.ndarray:
    x = (pcm - pcm.mean()) / np.sqrt(pcm.var() + 1e-5) if config.get("normalize_audio") else pcm
    x = x[:, None]
    for index, (_, _, stride) in enumerate(config["shapes"]):
        name = f"frontend.layers.{index}"
        weight = tensors[f"{name}.conv.weight"]
        x = convolve(x, weight, tensors.get(f"{name}.conv.bias", 0), stride)
        if config["norm_mode"] == "layer_norm":
            x = norm(x, tensors, f"{name}.layer_norm", 1e-5)
        elif index == 0:  # each channel over all time
            x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
            x = x * tensors[f"{name}.layer_norm.weight"] + tensors[f"{name}.layer_norm.bias"]
        x = gelu(x)
    return norm(x, tensors, "frontend.final_norm", 1e-5) if config.get("normalize_output") else x


def positions(x: np.ndarray, tensors: Tensors) -> np.ndarray:
    """Apply the positional convolution: a weight norm for each of 128 taps, with the extra last frame dropped."""
    name = "encoder.embed.0.convs.0"
    gain, direction = (tensors[f"{name}.parametrizations.weight.original{part}"] for part in (0, 1))
    weight = np.stack(
        [gain[0, 0, k] * tap / np.sqrt((tap**2).sum()) for k, tap in enumerate(np.moveaxis(direction, 2, 0))], 2
    )
    return gelu(convolve(np.pad(x, ((64, 64), (0, 0))), weight, tensors[f"{name}.bias"], groups=16)[:-1])


def attention(x: np.ndarray, tensors: Tensors, name: str, heads: int) -> np.ndarray:
    query, key, value = (linear(x, tensors, f"{name}.linear_{part}").reshape(len(x), heads, -1) for part in "qkv")
    seen = np.zeros_like(value)
    for head in range(heads):
        scores = query[:, head] @ key[:, head].T / math.sqrt(query.shape[2])
        weights = np.exp(scores - scores.max(1, keepdims=True))
        seen[:, head] = weights / weights.sum(1, keepdims=True) @ value[:, head]
    return linear(seen.reshape(len(x), -1), tensors, f"{name}.linear_out")


def block(x: np.ndarray, tensors: Tensors, name: str, heads: int) -> np.ndarray:
    def feed_forward(x: np.ndarray, part: str, before: str) -> np.ndarray:
        inner = silu(linear(norm(x, tensors, f"{name}.{before}"), tensors, f"{name}.{part}.w_1"))
        return x + 0.5 * linear(inner, tensors, f"{name}.{part}.w_2")

    x = feed_forward(x, "feed_forward_macaron", "norm_ff_macaron")
    heard = attention(norm(x, tensors, f"{name}.norm_mha"), tensors, f"{name}.attn", heads)
    wide = gelu(linear(norm(x, tensors, f"{name}.norm_mlp"), tensors, f"{name}.cgmlp.channel_proj1.0"))
    kept, gate = np.split(wide, 2, axis=1)
    gate = depthwise(norm(gate, tensors, f"{name}.cgmlp.csgu.norm"), tensors, f"{name}.cgmlp.csgu.conv")
    both = np.concatenate([heard, linear(kept * gate, tensors, f"{name}.cgmlp.channel_proj2")], 1)
    x = x + linear(both + depthwise(both, tensors, f"{name}.depthwise_conv_fusion"), tensors, f"{name}.merge_proj")
    return norm(feed_forward(x, "feed_forward", "norm_ff"), tensors, f"{name}.norm_final")


def features(pcm: np.ndarray, published: Mapping[str, Any], config: Mapping[str, Any]) -> np.ndarray:
    """Compute features [T, H] of samples [n] from `published` torch tensors and the contents of config.yaml."""
    tensors = {name: tensor.double().numpy() for name, tensor in published.items()}
    x = linear(front_end(pcm.astype(np.float64), tensors, config["frontend_conf"]), tensors, "preencoder.linear_out")
    x = positions(x, tensors)
    for index in range(config["encoder_conf"]["num_blocks"]):
        x = block(x, tensors, f"encoder.encoders.{index}", config["encoder_conf"]["attention_heads"])
    return norm(x, tensors, "encoder.after_norm")


def distances(x: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return Euclidean distances [T, C] from features to centres."""
    return np.array([[math.dist(frame, centre) for centre in centres] for frame in x])
