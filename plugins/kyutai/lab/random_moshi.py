"""Small random releases of Moshi in Kyutai's published layout, with the oracle's weights (`random_kyutai_stt`)."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from plugins.kyutai.lab import random_kyutai_stt

CONFIG: dict[str, Any] = {
    "dim": 64,
    "num_heads": 2,
    "num_layers": 3,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "existing_text_padding_id": 3,
    "depformer_dim": 32,
    "depformer_num_heads": 4,
    "depformer_num_layers": 2,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_max_period": 10000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "depformer_dim_feedforward": 132,
    "depformer_context": 8,
    "moshi_name": "model.safetensors",
    "mimi_name": "tokenizer-e351c8d8-checkpoint125.safetensors",
    "mimi_config_name": "mimi.json",  # only in small releases
    "tokenizer_name": "tokenizer_spm_32k_3.model",
    "model_type": "moshi",
    "text_card": 96,
    "card": 64,
    "n_q": 16,
    "dep_q": 8,
    "context": 24,
    "max_period": 10000,
    "delays": [0, *[0, *[1] * 7] * 2],
}


def lm_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the language model's tensors by published name."""
    shapes = random_kyutai_stt.lm_shapes({**config, "extra_heads_num_heads": 0})
    width = config["dim"]
    size = config["depformer_dim"]
    num_codes = config["card"]
    steps = config["dep_q"]
    schedule = config.get("depformer_weights_per_step_schedule") or range(steps)
    num_sets = 1 + max(schedule)
    inner = 2 * config["depformer_dim_feedforward"] // 3
    rank = config.get("depformer_low_rank_embeddings")
    depth_tables = ["depformer_text_emb", *(f"depformer_emb.{k}" for k in range(steps - 1))]
    for name in depth_tables:
        shapes[f"{name}.weight"] = (config["text_card"] if "text" in name else num_codes) + 1, rank or size
        shapes |= {f"{name}.low_rank.weight": (size, rank)} if rank else {}
    shapes |= {f"linears.{k}.weight": (num_codes, size) for k in range(steps)}
    shapes |= {f"depformer_in.{w}.weight": (size, width) for w in range(num_sets)}
    for layer in range(config["depformer_num_layers"]):
        prefix = f"depformer.layers.{layer}."
        shapes[f"{prefix}self_attn.in_proj_weight"] = num_sets * 3 * size, size
        shapes[f"{prefix}self_attn.out_proj.weight"] = num_sets * size, size
        shapes |= {f"{prefix}norm{number}.alpha": (1, 1, size) for number in (1, 2)}
        for w in range(num_sets):
            shapes[f"{prefix}gating.{w}.linear_in.weight"] = 2 * inner, size
            shapes[f"{prefix}gating.{w}.linear_out.weight"] = size, inner
    return shapes


def write_release(folder: Path, seed: int = 7, **changed: Any) -> Path:
    """Write a release; `changed` are fields of its config.json."""
    config = {**CONFIG, **changed}
    random_kyutai_stt.write_parts(folder, config, seed)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: random_kyutai_stt.values(name, shape, seed) for name, shape in lm_shapes(config).items()}
    save_file(tensors, folder / config["moshi_name"])
    return folder
