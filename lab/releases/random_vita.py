"""Small random weights of VITA-Audio in the published layout, identical on every machine.

`model.layers` has the decoder layers of the main model, then those of the multi-token-prediction modules. The other
tensors of these modules belong to the wrapper around the model, which also has the head. The weights need only
`random_tensors.py` and numpy. In a release with SenseVoice as its audio encoder, the encoder is narrow.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from lab.releases.random_tensors import random_tensors

MAIN_LAYERS = 2
MODULES = 10

# config.json of a small release: as many modules as published, but only two of 28 main layers.
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
    """Return the shapes of tensors by published name for a config.json."""
    hidden = config["hidden_size"]
    inner = config["intermediate_size"]
    vocab = config["vocab_size"]
    width = hidden // config["num_attention_heads"]
    keys = config["num_key_value_heads"] * width
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(config["num_hidden_layers"]):
        attention = f"model.layers.{layer}.self_attn."
        mlp = f"model.layers.{layer}.mlp."
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
    return random_tensors(shapes(config), seed)


def write_release(folder: Path, config: dict[str, Any] | None = None, seed: int = 1) -> Path:
    """Write a release: weights, configuration, and the tokenizer with its markers and codes."""
    from safetensors.numpy import save_file
    from tokenizers import AddedToken, Tokenizer

    from lab.releases.random_espnet import write_tokenizer

    config = config or SMALL
    stored = tensors(config, seed)
    special = list(SPECIAL)
    write_tokenizer(folder, 284)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if config["model_type"] == PLUS["model_type"]:
        write_numbers(folder)
        stored |= encoder_tensors(config["hidden_size"])
        special.insert(1 + special.index("end_of_audio"), "context_of_audio")
    tokenizer.add_special_tokens([f"<|{name}|>" for name in special])
    tokenizer.add_tokens([AddedToken(f"<|audio_{code}|>", normalized=False) for code in range(NUM_CODES)])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    save_file(stored, folder / "model.safetensors")
    return folder


WIDTH = 560
SIZE = 32
INNER = 48
TAPS = 5
NUM_BLOCKS = 3
NUM_LAST_BLOCKS = 2
NUM_IDS = 20
TOWER = "model.audio_model.model."
ADAPTOR = "model.audio_projection."
CONFIG = f"""\
encoder: SenseVoiceEncoderSmall
encoder_conf:
    output_size: {SIZE}
    attention_heads: 4
    linear_units: {INNER}
    num_blocks: {NUM_BLOCKS}
    tp_blocks: {NUM_LAST_BLOCKS}
    dropout_rate: 0.1
    positional_dropout_rate: 0.1
    attention_dropout_rate: 0.1
    input_layer: pe
    pos_enc_class: SinusoidalPositionEncoder
    normalize_before: true
    kernel_size: {TAPS}
    sanm_shfit: 0
    selfattention_layer_type: sanm
model: SenseVoiceSmall
model_conf:
    length_normalized_loss: true
    sos: 1
    eos: 2
    ignore_id: -1
frontend: WavFrontend
frontend_conf:
    fs: 16000
    window: hamming
    n_mels: 80
    frame_length: 25
    frame_shift: 10
    lfr_m: 7
    lfr_n: 6
"""


def encoder_shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the audio encoder's shapes by published name, for a backbone of width `hidden`."""
    found: dict[str, tuple[int, ...]] = {f"{TOWER}embed.weight": (16, WIDTH)}
    blocks = [("encoders0.0", WIDTH)]
    blocks += [(f"encoders.{index}", SIZE) for index in range(NUM_BLOCKS - 1)]
    blocks += [(f"tp_encoders.{index}", SIZE) for index in range(NUM_LAST_BLOCKS)]
    for block, width in blocks:
        name = f"{TOWER}encoder.{block}."
        found |= _linear(f"{name}self_attn.linear_q_k_v", width, 3 * SIZE)
        found |= _linear(f"{name}self_attn.linear_out", SIZE, SIZE)
        found[f"{name}self_attn.fsmn_block.weight"] = (SIZE, 1, TAPS)
        found |= _linear(f"{name}feed_forward.w_1", SIZE, INNER) | _linear(f"{name}feed_forward.w_2", INNER, SIZE)
        found |= _norm(f"{name}norm1", width) | _norm(f"{name}norm2", SIZE)
    found |= _norm(f"{TOWER}encoder.after_norm", SIZE) | _norm(f"{TOWER}encoder.tp_norm", SIZE)
    found |= _linear(f"{TOWER}ctc.ctc_lo", SIZE, NUM_IDS) | _norm(f"{ADAPTOR}pre_proj_layernorm", SIZE)
    return found | {f"{ADAPTOR}mlp.0.weight": (hidden, SIZE), f"{ADAPTOR}mlp.2.weight": (hidden, hidden)}


def encoder_tensors(hidden: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random float32 tensors of the audio encoder by published name, the same on every machine."""
    random = np.random.default_rng(seed)
    found = dict[str, np.ndarray]()
    for name, shape in sorted(encoder_shapes(hidden).items()):
        noise = random.standard_normal(shape, np.float32)
        if len(shape) == 1:
            found[name] = ("norm" in name and name.endswith("weight")) + np.float32(0.2) * noise
        else:
            found[name] = noise * np.float32(1 if "embed" in name else shape[-1] ** -0.5)
    return found


def write_numbers(folder: Path) -> Path:
    """Write `config.yaml` and a random `am.mvn` to an existing folder."""
    (folder / "config.yaml").write_text(CONFIG)
    random = np.random.default_rng(1)
    layers = {"<AddShift>": -8 + random.standard_normal(WIDTH), "<Rescale>": 0.2 + 0.02 * random.standard_normal(WIDTH)}
    text = f"<Nnet>\n<Splice> {WIDTH} {WIDTH}\n[ 0 ]\n"
    for name, values in layers.items():
        text += f"{name} {WIDTH} {WIDTH}\n<LearnRateCoef> 0 [ {' '.join(f'{value:.6g}' for value in values)} ]\n"
    (folder / "am.mvn").write_text(text + "</Nnet>\n")
    return folder


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}
