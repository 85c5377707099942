"""Random checkpoints for tests, of benchmark models and of models that exist only in tests."""

import json
from pathlib import Path

from safetensors.numpy import save_file

from lab.releases.random_vita import tensors
from stretto.family.base import Family
from stretto.testing.checkpoints import write_checkpoint

__all__ = ["write_checkpoint", "write_modules"]


def write_modules(folder: Path, family: Family, name: str, layers: int = 2, seed: int = 0, hidden: int = 128) -> Path:
    """Write a Qwen2 of `layers` layers and the MTP modules of `family`, under the published names."""
    assert family.mechanism.steps is not None
    modules = family.mechanism.steps.max_extra
    config = {
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden // 2,
        "num_hidden_layers": layers + modules,
        "num_nextn_predict_layers": modules,
        "num_attention_heads": hidden // 32,  # vLLM's CPU attention does not support smaller heads
        "num_key_value_heads": hidden // 64,
        "vocab_size": family.layout.vocab_size,
        "max_position_embeddings": family.max_model_len,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    }
    save_file(tensors(config, seed), folder / "model.safetensors")
    names = {"architectures": ["StrettoQwen2ForCausalLM"], "model_type": "qwen2", "speech_family": name}
    served = {**config, **names, "num_hidden_layers": layers, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(served))
    return folder
