"""The GLM-4-Voice decoder and audio tokenizer in the published layout, with random weights that give audible output.

The decoder is narrow or has its published width; the tokenizer is narrow. numpy draws the weights in the order of their
names, so that an external reference can draw the same ones.
"""

import json
import math
import re
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stretto.codecs.glm4_voice import Glm4VoiceCodec, read_config
from stretto.encoders.whisper_vq import CONFIG as CONFIG_FILE
from stretto.encoders.whisper_vq import FEATURES, WhisperVq, WhisperVqConfig

PITCH_HZ = 180.0
# names of both factors of a normed weight, as later releases have them
MAGNITUDE, DIRECTION = (f"parametrizations.weight.original{part}" for part in (0, 1))
NARROW = {
    "flow": {"vocab_size": 64, "input_size": 24},
    "encoder": {"output_size": 16, "attention_heads": 2, "linear_units": 24, "num_blocks": 2, "input_size": 24},
    "estimator": {"channels": "[16, 16]", "attention_head_dim": 8, "n_blocks": 1, "num_mid_blocks": 1, "num_heads": 2},
    "hift": {"base_channels": 16, "cond_channels": 8},
}
WIDE = {
    "flow": {"vocab_size": 16384, "input_size": 512},
    "encoder": {"output_size": 512, "attention_heads": 8, "linear_units": 2048, "num_blocks": 6, "input_size": 512},
    "estimator": {
        "channels": "[256, 256]",
        "attention_head_dim": 64,
        "n_blocks": 4,
        "num_mid_blocks": 12,
        "num_heads": 8,
    },
    "hift": {"base_channels": 512, "cond_channels": 512},
}
CONFIG = """\
__set_seed1: !apply:random.seed [1986]
sample_rate: 22050
spk_embed_dim: 192
flow: !new:cosyvoice.flow.flow.MaskedDiffWithXvec
    input_size: {flow[input_size]}
    output_size: 80
    spk_embed_dim: !ref <spk_embed_dim>
    output_type: 'mel'
    vocab_size: {flow[vocab_size]}
    input_frame_rate: 12.5
    only_mask_loss: True
    encoder: !new:cosyvoice.transformer.encoder.BlockConformerEncoder
        output_size: {encoder[output_size]}
        attention_heads: {encoder[attention_heads]}
        linear_units: {encoder[linear_units]}
        num_blocks: {encoder[num_blocks]}
        dropout_rate: 0.1
        positional_dropout_rate: 0.1
        attention_dropout_rate: 0.1
        normalize_before: True
        input_layer: 'linear'
        pos_enc_layer_type: 'rel_pos_espnet'
        selfattention_layer_type: 'block_rel_selfattn'
        block_size: 10
        input_size: {encoder[input_size]}
        use_cnn_module: False
        macaron_style: False
    length_regulator: !new:cosyvoice.flow.length_regulator.InterpolateRegulator
        channels: 80
        sampling_ratios: [1, 1, 1, 1]
    decoder: !new:cosyvoice.flow.flow_matching.ConditionalCFM
        in_channels: 240
        n_spks: 1
        spk_emb_dim: 80
        cfm_params: !new:omegaconf.DictConfig
            content:
                sigma_min: 1e-06
                solver: 'euler'
                t_scheduler: 'cosine'
                training_cfg_rate: 0.2
                inference_cfg_rate: 0.7
                reg_loss_type: 'l1'
        estimator: !new:cosyvoice.flow.decoder.ConditionalDecoder
            in_channels: 320
            out_channels: 80
            channels: {estimator[channels]}
            dropout: 0
            attention_head_dim: {estimator[attention_head_dim]}
            n_blocks: {estimator[n_blocks]}
            num_mid_blocks: {estimator[num_mid_blocks]}
            num_heads: {estimator[num_heads]}
            act_fn: 'gelu'
hift: !new:cosyvoice.hifigan.generator.HiFTGenerator
    in_channels: 80
    base_channels: {hift[base_channels]}
    nb_harmonics: 8
    sampling_rate: !ref <sample_rate>
    nsf_alpha: 0.1
    nsf_sigma: 0.003
    nsf_voiced_threshold: 10
    upsample_rates: [8, 8]
    upsample_kernel_sizes: [16, 16]
    istft_params:
        n_fft: 16
        hop_len: 4
    resblock_kernel_sizes: [3, 7, 11]
    resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5], [1, 3, 5]]
    source_resblock_kernel_sizes: [7, 11]
    source_resblock_dilation_sizes: [[1, 3, 5], [1, 3, 5]]
    lrelu_slope: 0.1
    audio_limit: 0.99
    f0_predictor: !new:cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor
        num_class: 1
        in_channels: 80
        cond_channels: {hift[cond_channels]}
"""
WEIGHT_NORMS = re.compile(
    r"(ups\.\d|conv_pre|conv_post|(source_)?resblocks\.\d+\.convs[12]\.\d|f0_predictor\.condnet\.\d)\."
)


def write_glm4_voice(folder: Path, is_narrow: bool = True, seed: int = 0) -> Path:
    """Write `config.yaml`, `flow.pt` and `hift.pt` to a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG.format(**(NARROW if is_narrow else WIDE)))
    codec = Glm4VoiceCodec(read_config(folder))
    rng = np.random.default_rng(seed)
    torch.save(random_weights(codec.flow, rng), folder / "flow.pt")
    torch.save(as_published(random_vocoder(codec.hift, rng)), folder / "hift.pt")
    return folder


def random_vocoder(vocoder: nn.Module, rng: np.random.Generator) -> dict[str, Tensor]:
    """Return random weights for a HiFT vocoder whose pitch is near PITCH_HZ."""
    drawn = random_weights(vocoder, rng)
    drawn["f0_predictor.classifier.bias"] += PITCH_HZ
    drawn["f0_predictor.classifier.weight"] *= 0.3 * PITCH_HZ
    return drawn


def random_weights(module: nn.Module, rng: np.random.Generator) -> dict[str, Tensor]:
    """Return random weights that roughly preserve the magnitude of their input, with norm scales near 1."""
    drawn = {}
    for name, tensor in sorted(module.state_dict().items()):
        values = rng.standard_normal(tuple(tensor.shape))
        if tensor.dim() == 1:
            is_scale = name.endswith((".weight", ".alpha"))
            values = 1 + 0.1 * values if is_scale else 0.1 * values
        else:
            layer = module.get_submodule(name.rpartition(".")[0])
            is_transposed = name.startswith("ups.") and isinstance(layer, nn.ConvTranspose1d)
            inputs = 2 * tensor.shape[0] if is_transposed else tensor[0].numel()
            values /= math.sqrt(inputs)
        scale = 0.05 if name == "conv_post.weight" else 1.0
        drawn[name] = torch.from_numpy((scale * values).astype(np.float32))
    return drawn


def as_published(
    tensors: dict[str, Tensor], magnitude: str = "weight_g", direction: str = "weight_v"
) -> dict[str, Tensor]:
    """Return HiFT tensors as published: each normalised weight is split into magnitude and direction."""
    published = {}
    for name, tensor in tensors.items():
        if WEIGHT_NORMS.match(name) and name.endswith(".weight"):
            stem = name.removesuffix("weight")
            norm = np.sqrt(np.square(tensor.double().numpy()).sum((1, 2), keepdims=True))
            published[f"{stem}{magnitude}"] = torch.from_numpy(norm.astype(np.float32))
            published[f"{stem}{direction}"] = 3 * tensor
        else:
            published[name] = tensor
    return published


NUM_CODES = 64
RECORD = {
    "model_type": "whisper",
    "activation_function": "gelu",
    "d_model": 32,
    "encoder_layers": 4,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 128,
    "max_source_positions": 1500,
    "encoder_causal_attention": False,
    "encoder_causal_convolution": True,
    "pooling_kernel_size": 4,
    "pooling_position": 2,
    "pooling_type": "avg",
    "quantize_causal_block_size": 20,
    "quantize_causal_encoder": False,
    "quantize_encoder_only": True,
    "quantize_ema_decay": 0.99,
    "quantize_position": 2,
    "quantize_vocab_size": NUM_CODES,
    "vocab_size": 51866,
}
PREPROCESSOR = {
    "chunk_length": 30,
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "hop_length": 160,
    "n_fft": 400,
    "n_samples": 480000,
    "nb_max_frames": 3000,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": False,
    "sampling_rate": 16000,
}


def write_glm4_tokenizer(folder: Path, prefix: str = "", **values: object) -> Path:
    """Write `config.json` (with `values`), `preprocessor_config.json` and `model.safetensors` to a new folder.

    In the published complete model, tensor names have the prefix `model.encoder.`; in the encoder, none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = RECORD | values
    (folder / CONFIG_FILE).write_text(json.dumps(record))
    (folder / FEATURES).write_text(json.dumps(PREPROCESSOR))
    tensors = tokenizer_weights(WhisperVqConfig.from_record(RECORD))
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def tokenizer_weights(config: WhisperVqConfig) -> dict[str, Tensor]:
    """Return random encoder tensors, drawn in the order of their names, with those only for training."""
    rng = np.random.default_rng(0)
    drawn = dict[str, Tensor]()
    for name, tensor in sorted(WhisperVq(config).state_dict().items()):
        values = torch.from_numpy(rng.standard_normal(tuple(tensor.shape), dtype=np.float32))
        if tensor.dim() == 1:
            drawn[name] = (1 if "norm.weight" in name else 0) + 0.1 * values
        elif "embed_positions" in name:
            drawn[name] = 0.1 * values
        else:
            drawn[name] = values * (1 if name.startswith("codebook") else 2 / math.sqrt(tensor[0].numel()))
    drawn["embed_positions2.weight"] = drawn["embed_positions.weight"][: -(-config.positions // config.pool)].clone()
    return drawn | {"ema_count": torch.ones(config.codes), "ema_weight": drawn["codebook.weight"].clone()}
