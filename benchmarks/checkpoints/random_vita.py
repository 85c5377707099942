"""Small random weights of VITA-Audio in the published layout, identical on every machine.

`model.layers` holds the main model's decoder layers, then those of the modules. The other tensors of the modules belong
to the wrapper around the model, which has the head. The weights need only `random_tensors.py` and numpy.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.checkpoints.random_tensors import random_tensors

MAIN_LAYERS, MODULES = 2, 10

# config.json of a small release: as many modules as published, two main layers of 28.
SMALL: dict[str, Any] = {
    "architectures": ["Qwen2MTPForCausalLM"],
    "model_type": "qwen2_mtp",
    "num_nextn_predict_layers": MODULES,
    "num_hidden_layers": MAIN_LAYERS + MODULES,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vocab_size": 384,
    "torch_dtype": "float32",
}
# config.json of a release with SenseVoice as its audio encoder.
PLUS = SMALL | {"architectures": ["Qwen2MTPSenseVoiceForCausalLM"], "model_type": "qwen2_mtp_sensevoice"}
NUM_CODES = 64
SPECIAL = (
    *(f"{place}_of_{kind}" for kind in ("image", "video", "patch") for place in ("begin", "end", "context")),
    *(f"{place}_of_{kind}" for kind in ("audio", "quad", "ref", "box") for place in ("begin", "end")),
    *("image", "video", "audio"),
)
GENERATION = {
    "do_sample": True,
    "mtp_inference_mode": [1, 4, 3, 8, 4, 10],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_k": 20,
    "top_p": 0.8,
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes by published name of a model with this config.json."""
    hidden, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    width = hidden // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * width
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp."
        for name, rows in (("q", hidden), ("k", keys), ("v", keys)):
            found |= {f"{attention}{name}_proj.weight": (rows, hidden), f"{attention}{name}_proj.bias": (rows,)}
        found[f"{attention}o_proj.weight"] = (hidden, hidden)
        found |= {f"{mlp}{name}_proj.weight": (inner, hidden) for name in ("gate", "up")}
        found[f"{mlp}down_proj.weight"] = (hidden, inner)
        norms = ("input_layernorm", "post_attention_layernorm")
        found |= {f"model.layers.{layer}.{name}.weight": (hidden,) for name in norms}
    found |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}
    for module in range(config["num_nextn_predict_layers"]):
        found[f"mtp_projs.{module}.weight"] = (hidden, 2 * hidden)
        found |= {f"mtp_{name}_norms.{module}.weight": (hidden,) for name in ("embed", "hidden")}
    return found


def tensors(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Return the language model's tensors by published name; the encoder's are in `random_sense_voice.py`."""
    return random_tensors(shapes(config), seed)


def write_release(folder: Path, config: dict[str, Any] | None = None, seed: int = 1) -> Path:
    """Write a release as published: weights, configuration, and the tokenizer with its markers and codes."""
    from safetensors.numpy import save_file
    from tokenizers import AddedToken, Tokenizer

    from benchmarks.checkpoints import random_sense_voice
    from benchmarks.checkpoints.random_published import write_tokenizer

    config = config or SMALL
    stored, special = tensors(config, seed), list(SPECIAL)
    write_tokenizer(folder, 284)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if config["model_type"] == PLUS["model_type"]:
        random_sense_voice.write_numbers(folder)
        stored |= random_sense_voice.tensors(config["hidden_size"])
        special.insert(1 + special.index("end_of_audio"), "context_of_audio")
    tokenizer.add_special_tokens([f"<|{name}|>" for name in special])
    tokenizer.add_tokens([AddedToken(f"<|audio_{code}|>", normalized=False) for code in range(NUM_CODES)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    save_file(stored, folder / "model.safetensors")
    return folder
