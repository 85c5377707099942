"""Random LoRA adapters for the bundled model in PEFT's layout, and checkpoints with the adapters merged."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

RANK, ALPHA = 4, 8


def write_adapter(folder: Path, checkpoint: Path, seed: int, rank: int = RANK) -> Path:
    """Write an adapter for all linear layers of a checkpoint's backbone to `folder`."""
    generator = torch.Generator().manual_seed(seed)
    num_layers = json.loads((checkpoint / "config.json").read_text())["num_hidden_layers"]
    layers, tensors = tuple(f"model.layers.{layer}." for layer in range(num_layers)), dict[str, torch.Tensor]()
    for name, weight in load_weights(checkpoint).items():
        if name.startswith(layers) and weight.dim() == 2:
            size_out, size_in = weight.shape
            path = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(rank, size_in, generator=generator) / size_in**0.5
            tensors[f"{path}.lora_B.weight"] = 0.3 * torch.randn(size_out, rank, generator=generator) / rank**0.5
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.split(".")[-3] for name in tensors})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "target_modules": targets, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def load_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint's language model."""
    files = map(load_file, sorted(checkpoint.glob("model*.safetensors")))
    return {name: tensor for file in files for name, tensor in file.items()}


def write_merged(folder: Path, checkpoint: Path, adapter: Path) -> Path:
    """Write a checkpoint with an adapter merged: W + alpha / r · B A (Hu et al., arXiv 2106.09685, section 4.1)."""
    shutil.copytree(checkpoint, folder)
    weights, changes = load_weights(checkpoint), load_file(adapter / "adapter_model.safetensors")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    for name, weight in weights.items():
        path = f"base_model.model.{name.removesuffix('.weight')}"
        weights[name] = weight.float()
        if f"{path}.lora_A.weight" in changes:
            first, second = changes[f"{path}.lora_A.weight"], changes[f"{path}.lora_B.weight"]
            weights[name] += ALPHA / len(first) * second @ first
    save_file(weights, folder / "model.safetensors")
    return folder
