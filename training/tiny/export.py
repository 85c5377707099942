"""Export of a training checkpoint to the directory that the engine loads: Hugging Face's Qwen3 names, float16."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from stretto.families.tiny import family as tiny
from training.tiny.network import Network, NetworkConfig

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"


def checkpoint_config(config: NetworkConfig) -> dict[str, Any]:
    """Return the contents of `config.json`: a Qwen3 configuration with our architecture and the family's name."""
    return {
        "architectures": ["StrettoQwen3ForCausalLM"],
        "model_type": "qwen3",
        "speech_family": tiny.TINY.name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "max_position_embeddings": tiny.TINY.max_model_len,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "sliding_window": None,
        "max_window_layers": config.num_hidden_layers,
        "layer_types": ["full_attention"] * config.num_hidden_layers,
        "initializer_range": 0.02,
        "use_cache": True,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": tiny.END_OF_REPLY,
        "pad_token_id": tiny.PAD,
        "torch_dtype": "float16",
    }


def export(checkpoint: Path, out: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors into `out`."""
    saved = torch.load(checkpoint, weights_only=True)
    out.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.half().contiguous() for name, weight in saved["network"].items()}
    (out / WEIGHTS_FILE).write_bytes(save(weights, metadata={"format": "pt"}))
    # Without an index, vLLM would also load the codec's weights, which are in the same folder.
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, WEIGHTS_FILE)}
    (out / f"{WEIGHTS_FILE}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    config = checkpoint_config(NetworkConfig(**saved["config"]))
    (out / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": tiny.END_OF_REPLY, "pad_token_id": tiny.PAD}
    (out / GENERATION_FILE).write_text(json.dumps(generation, indent=2) + "\n")


def load_exported(directory: Path) -> Network:
    """Load the network from an exported directory. Its float16 weights are converted to float32."""
    record = json.loads((directory / CONFIG_FILE).read_text())
    names = NetworkConfig.__dataclass_fields__
    network = Network(NetworkConfig(**{name: record[name] for name in names}))
    network.load_state_dict({name: weight.float() for name, weight in load_file(directory / WEIGHTS_FILE).items()})
    return network.eval()
