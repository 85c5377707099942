"""Narrow SenseVoice encoder with random weights, in the layout published with VITA-Audio-Plus, and its other files."""

from pathlib import Path

import numpy as np

WIDTH, SIZE, INNER, TAPS = 560, 32, 48, 5
NUM_BLOCKS, NUM_LAST_BLOCKS, NUM_IDS = 3, 2, 20
TOWER, ADAPTOR = "model.audio_model.model.", "model.audio_projection."
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


def shapes(hidden: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes by published name; the backbone is `hidden` wide."""
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


def tensors(hidden: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random float32 tensors by published name, the same on every machine."""
    random, found = np.random.default_rng(seed), dict[str, np.ndarray]()
    for name, shape in sorted(shapes(hidden).items()):
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
