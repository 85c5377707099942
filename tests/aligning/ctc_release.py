"""Small randomly initialised releases in the published wav2vec2 layouts: base and multilingual."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC

ENGLISH = ["<pad>", "<s>", "</s>", "<unk>", "|", *"ETAONIHSRDLUMWCFGYPBVK'XJQZ"]
MULTILINGUAL = ["<blank>", "<pad>", "</s>", "<unk>", *"aienoutsrmkldghybpwcvjzf'qx"]
WIDTHS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


def write_release(folder: Path, is_multilingual: bool = False) -> Path:
    """Write a release in the base layout (group norm, older tensor names) or the multilingual one (layer norms)."""
    labels = MULTILINGUAL if is_multilingual else ENGLISH
    kind = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True} if is_multilingual else {}
    config = Wav2Vec2Config(vocab_size=len(labels), pad_token_id=int(is_multilingual), **WIDTHS, **kind)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = Wav2Vec2ForCTC(config)
        model.lm_head.weight.data *= 20  # likely and unlikely labels
    model.save_pretrained(folder)
    if not is_multilingual:
        old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        tensors = load_file(folder / "model.safetensors")
        for new, name in old.items():
            (long,) = [each for each in tensors if each.endswith(new)]
            tensors[long.replace(new, name)] = tensors.pop(long)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "vocab.json").write_text(json.dumps({label: index for index, label in enumerate(labels)}))
    (folder / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16_000, "do_normalize": True}))
    return folder
