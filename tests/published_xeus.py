"""A small XEUS in the layout of espnet/xeus: published strides, kernels and names, few channels, random weights.

`tests/data/km_opus_lm.mdl` is a MiniBatchKMeans of scikit-learn 1.9 with 20 centres of size 32, saved by joblib 1.6.
"""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

HIDDEN, CHANNELS, BLOCKS, FEED_FORWARD, GATE = 32, 12, 3, 40, 36
KMEANS = Path(__file__).parent / "data" / "km_opus_lm.mdl"
LAYERS = [(10, 5), *[(3, 2)] * 4, *[(2, 2)] * 2]
CONFIG: dict[str, Any] = {
    "input_size": None,
    "frontend": "wav2vec_cnn",
    "frontend_conf": {
        "norm_mode": "layer_norm",
        "conv_mode": "standard",
        "bias": True,
        "normalize_audio": True,
        "shapes": [[CHANNELS, kernel, stride] for kernel, stride in LAYERS],
    },
    "specaug": None,
    "normalize": None,
    "preencoder": "linear",
    "preencoder_conf": {"output_size": HIDDEN},
    "encoder": "e_branchformer",
    "encoder_conf": {
        "output_size": HIDDEN,
        "attention_heads": 4,
        "attention_layer_type": "selfattn",
        "pos_enc_layer_type": "conv",
        "cgmlp_linear_units": GATE,
        "cgmlp_conv_kernel": 31,
        "merge_conv_kernel": 31,
        "num_blocks": BLOCKS,
        "input_layer": None,
        "use_ffn": True,
        "macaron_ffn": True,
        "linear_units": FEED_FORWARD,
        "dropout_rate": 0.1,
        "use_flash_attn": True,
    },
}


def published_tensors(seed: int = 0, config: dict[str, Any] = CONFIG) -> dict[str, Tensor]:
    """Return random tensors with the names and shapes of `xeus_checkpoint_new.pth`."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def norm(name: str, width: int) -> None:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = 1 + 0.2 * noise(width), 0.2 * noise(width)

    def layer(name: str, *shape: int, has_bias: bool = True) -> None:
        tensors[f"{name}.weight"] = 1.5 * noise(*shape) / math.sqrt(math.prod(shape[1:]))
        if has_bias:
            tensors[f"{name}.bias"] = 0.2 * noise(shape[0])

    front_end, width = config["frontend_conf"], HIDDEN
    for index, (kernel, _) in enumerate(LAYERS):
        name = f"frontend.layers.{index}"
        layer(f"{name}.conv", CHANNELS, CHANNELS if index else 1, kernel, has_bias=front_end["bias"])
        if front_end["norm_mode"] == "layer_norm" or not index:
            norm(f"{name}.layer_norm", CHANNELS)
    if front_end.get("normalize_output"):
        norm("frontend.final_norm", CHANNELS)
    layer("preencoder.linear_out", width, CHANNELS)
    layer("encoder.embed.0.convs.0", width, width // 16, 128)
    direction = tensors.pop("encoder.embed.0.convs.0.weight")
    tensors["encoder.embed.0.convs.0.parametrizations.weight.original0"] = 2 + noise(1, 1, 128).abs()
    tensors["encoder.embed.0.convs.0.parametrizations.weight.original1"] = direction
    for block in range(BLOCKS):
        name = f"encoder.encoders.{block}"
        for part in ("linear_q", "linear_k", "linear_v", "linear_out"):
            layer(f"{name}.attn.{part}", width, width)
        layer(f"{name}.cgmlp.channel_proj1.0", GATE, width)
        norm(f"{name}.cgmlp.csgu.norm", GATE // 2)
        layer(f"{name}.cgmlp.csgu.conv", GATE // 2, 1, 31)
        layer(f"{name}.cgmlp.channel_proj2", width, GATE // 2)
        for part in ("feed_forward", "feed_forward_macaron"):
            layer(f"{name}.{part}.w_1", FEED_FORWARD, width)
            layer(f"{name}.{part}.w_2", width, FEED_FORWARD)
        for part in ("ff", "ff_macaron", "mha", "mlp", "final"):
            norm(f"{name}.norm_{part}", width)
        layer(f"{name}.depthwise_conv_fusion", 2 * width, 1, 31)
        layer(f"{name}.merge_proj", width, 2 * width)
    norm("encoder.after_norm", width)
    training = {"global_step": torch.tensor([7]), "util_modules.mask.mask_embedding": noise(width)}
    return tensors | training | {"losses.0.decoder.label_embeddings.weight": noise(8, 4)}


def old_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors to the names in `xeus_checkpoint_old.pth`."""
    renames = {
        "encoder.embed.0.convs.0.parametrizations.weight.original0": "encoder.embed.0.conv.weight_g",
        "encoder.embed.0.convs.0.parametrizations.weight.original1": "encoder.embed.0.conv.weight_v",
        "encoder.embed.0.convs.0.bias": "encoder.embed.0.conv.bias",
        "util_modules.mask.mask_embedding": "masker.mask_embedding",
    }
    return {renames.get(name, name): tensor for name, tensor in tensors.items() if name != "global_step"}


def write_xeus(
    folder: Path, tensors: dict[str, Tensor] | None = None, config: dict[str, Any] = CONFIG, name: str = "new"
) -> Path:
    """Write the release, with its files in `model/`."""
    model = folder / "model"
    model.mkdir(parents=True, exist_ok=True)
    torch.save(published_tensors() if tensors is None else tensors, model / f"xeus_checkpoint_{name}.pth")
    (model / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    shutil.copy(KMEANS, model / KMEANS.name)
    return folder
