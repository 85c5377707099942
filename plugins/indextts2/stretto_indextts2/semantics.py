"""Semantic vectors of a recording: hidden states of w2v-BERT 2.0, and their codes in MaskGCT's codec.

    recording 16 kHz ─► log filter bank ─► 17 layers of w2v-BERT ─► normalised [T, S] ─► encoder ─► nearest code [T]

w2v-BERT is a model of transformers. The semantic codec's modules and tensors are named as those of
https://huggingface.co/amphion/MaskGCT (CC-BY-NC-4.0), with weight norms multiplied out.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SeamlessM4TFeatureExtractor, Wav2Vec2BertConfig, Wav2Vec2BertModel

from stretto.codecs.cosyvoice.shapes import Shapes, count, shape_of
from stretto.encoders.voice_spectra import TOKEN_RATE_HZ
from stretto.errors import CheckpointError

NUM_LAYERS = 17  # layers of w2v-BERT that are used, of 24
DEPTHWISE_KERNEL = 7
NORM_EPSILON = 1e-6


def speech_model_of(shapes: Shapes, states: int) -> Wav2Vec2BertModel:
    """Return w2v-BERT's first layers, whose hidden states have the width `states`."""
    layer = "speech.model.encoder.layers.0"
    head_width = shape_of(shapes, f"{layer}.self_attn.distance_embedding.weight", 2)[1]
    if states % head_width:
        expected = f"a width that divides {states}"
        raise CheckpointError(f"{layer}.self_attn.distance_embedding.weight: expected {expected}, got {head_width}")
    config = Wav2Vec2BertConfig(  # other sizes are the defaults
        hidden_size=states,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=states // head_width,
        intermediate_size=shape_of(shapes, f"{layer}.ffn1.intermediate_dense.bias", 1)[0],
        mask_time_prob=0.0,  # without the vector of masked inputs
    )
    return Wav2Vec2BertModel(config)


class SpeechStates(nn.Module):
    """w2v-BERT with the mean and the variance of its hidden states."""

    mean: Tensor
    var: Tensor

    def __init__(self, model: Wav2Vec2BertModel) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "var"):
            self.register_buffer(name, torch.zeros(model.config.hidden_size))
        self._features = SeamlessM4TFeatureExtractor(sampling_rate=TOKEN_RATE_HZ)

    def forward(self, pcm: Tensor) -> Tensor:
        """Return the normalised hidden states [T, S] of samples [n] at 16 kHz, 50 per second."""
        features = self._features(pcm.cpu().numpy(), sampling_rate=TOKEN_RATE_HZ, return_tensors="np")
        inputs = torch.from_numpy(np.asarray(features["input_features"])).to(self.mean)
        mask = torch.from_numpy(np.asarray(features["attention_mask"])).to(pcm.device)
        states = self.model(inputs, mask).last_hidden_state[0]
        return (states - self.mean) / self.var.sqrt()


class _Block(nn.Module):
    """ConvNeXt block (arXiv 2201.03545) in one dimension."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(width, width, DEPTHWISE_KERNEL, padding=DEPTHWISE_KERNEL // 2, groups=width)
        self.norm = nn.LayerNorm(width, NORM_EPSILON)
        self.pwconv1 = nn.Linear(width, inner)
        self.pwconv2 = nn.Linear(inner, width)
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.pwconv2(F.gelu(self.pwconv1(self.norm(self.dwconv(x.T).T))))
        return x + self.gamma * hidden


class _Backbone(nn.Module):
    """Vocos backbone (arXiv 2306.00814)."""

    def __init__(self, states: int, width: int, inner: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Conv1d(states, width, DEPTHWISE_KERNEL, padding=DEPTHWISE_KERNEL // 2)
        self.norm = nn.LayerNorm(width, NORM_EPSILON)
        self.convnext = nn.ModuleList(_Block(width, inner) for _ in range(layers))
        self.final_layer_norm = nn.LayerNorm(width, NORM_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x.T).T)
        for block in self.convnext:
            x = block(x)
        return self.final_layer_norm(x)


class SemanticCodec(nn.Module):
    """MaskGCT's semantic codec without its decoder: the nearest code, by cosine, of each hidden state."""

    def __init__(self, states: int, width: int, inner: int, layers: int, num_codes: int, code_width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(_Backbone(states, width, inner, layers), nn.Linear(width, states))
        self.in_project = nn.Linear(states, code_width)
        self.codebook = nn.Embedding(num_codes, code_width)

    def forward(self, states: Tensor) -> Tensor:
        """Return the codes, int64 [T], of hidden states [T, S]."""
        directions = F.normalize(self.in_project(self.encoder(states)), dim=1)
        return (directions @ F.normalize(self.codebook.weight, dim=1).T).argmax(1)


def semantic_codec_of(shapes: Shapes, states: int) -> SemanticCodec:
    """Return a codec of the published sizes, for hidden states of width `states`."""
    width = shape_of(shapes, "semantic.encoder.0.embed.bias", 1)[0]
    inner = shape_of(shapes, "semantic.encoder.0.convnext.0.pwconv1.bias", 1)[0]
    layers = count(shapes, "semantic.encoder.0.convnext")
    return SemanticCodec(states, width, inner, layers, *shape_of(shapes, "semantic.codebook.weight", 2))
