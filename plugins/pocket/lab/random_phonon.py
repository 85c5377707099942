"""Randomly initialised Phonon releases in Gradium's layout: language model, codec, tokenizer and voices.

    python -m plugins.pocket.lab.random_phonon FOLDER [KIND]

The kind `published` has the default dimensions of the class in transformers; the others are small: `small` (LSD head,
the default), `steps` (LSD head with four steps, other dimensions), `drifting` (drifting head, without conditions) and
`odd` (a codec of odd dimensions, with the exact form of GELU).
The codec is of the same kind as Pocket TTS's.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from plugins.pocket.lab import random_pocket
from plugins.pocket.lab.random_pocket import flow_shapes, layer_shapes, linear

NUM_TOKENS = 200
NUM_FREQUENCIES = 128
NUM_SPEAKER_ROWS = 31
SPEAKER_WIDTH = 16
DURATION_WIDTH = 128
# Number of frames of each voice, and whether its file has latents of the speaker codec or embedded rows.
VOICES = {"Toby": (13, True), "mia": (9, False)}
CONDITIONERS = "flow_lm.condition_provider.conditioners."
SPEAKER_CODEC_WIDTH = 24
SEANET = random_pocket.SEANET
SMALL: dict[str, Any] = {
    "d_model": 64,
    "num_heads": 2,
    "num_layers": 3,
    "dim_feedforward": 128,
    "max_period": 10000.0,
    "n_bins": NUM_TOKENS,
    "lut_dim": 64,
    "flow_dim": 32,
    "flow_depth": 3,
    "ldim": random_pocket.NUM_WORDS,
    "time_rms_norm": "rms",
}
STEPS = SMALL | {
    "d_model": 96,
    "num_heads": 3,
    "num_layers": 2,
    "dim_feedforward": 160,
    "lut_dim": 96,
    "flow_dim": 48,
    "flow_depth": 2,
    "max_period": 5000.0,
}
PUBLISHED = SMALL | {
    "d_model": 768,
    "num_heads": 12,
    "num_layers": 6,
    "dim_feedforward": 3072,
    "n_bins": 4000,
    "lut_dim": 768,
    "flow_dim": 512,
    "flow_depth": 6,
    "ldim": 32,
}
SMALL_CODEC: dict[str, Any] = {
    "channels": 1,
    "sample_rate": 24000,
    "frame_rate": 12.5,
    "dimension": SPEAKER_CODEC_WIDTH,
    "quantizer_dimension": random_pocket.NUM_WORDS,
    "quantizer_output_dimension": 24,
    **{name: SEANET[name] for name in ("n_filters", "n_residual_layers", "ratios", "kernel_size", "last_kernel_size")},
    **{name: SEANET[name] for name in ("residual_kernel_size", "dilation_base", "compress")},
    "transformer_d_model": 24,
    "transformer_num_heads": 4,
    "transformer_num_layers": 2,
    "transformer_layer_scale": 0.01,
    "transformer_context": 250,  # more steps than are compared: beyond it, the runtime sees fewer than transformers
    "transformer_max_period": 10000.0,
    "transformer_dim_feedforward": 48,
    "downsample_channel_wise": False,
}
PUBLISHED_CODEC = SMALL_CODEC | {
    "dimension": 512,
    "quantizer_dimension": 32,
    "quantizer_output_dimension": 512,
    "n_filters": 64,
    "transformer_d_model": 512,
    "transformer_num_heads": 8,
    "transformer_dim_feedforward": 2048,
}
ODD_CODEC = SMALL_CODEC | {
    "dimension": 20,
    "quantizer_output_dimension": 20,
    "n_filters": 5,
    "ratios": [5, 4, 3, 2],
    "kernel_size": 5,
    "transformer_d_model": 20,
    "transformer_num_heads": 2,
    "transformer_max_period": 3000.0,
}


MODELS = {"small": SMALL, "steps": STEPS, "drifting": SMALL, "odd": SMALL, "published": PUBLISHED}
CODECS = {"odd": ODD_CODEC, "published": PUBLISHED_CODEC}
KINDS = ("small", "steps", "drifting")
SPOKEN_KINDS = ("small", "steps", "odd")  # by the authors' runtime
# End thresholds that the end logit of some frame in a reply exceeds, as with a trained model.
THRESHOLDS = {"small": -0.3, "steps": 0.43, "drifting": 0.5, "odd": -0.3, "published": -4.0}


def config(kind: str = "small") -> dict[str, Any]:
    """Return the release's config.json."""
    made: dict[str, Any] = {
        "flow_lm": MODELS[kind],
        "mimi": CODECS.get(kind, SMALL_CODEC),
        "temp": 0.3,
        "lsd_decode_steps": 4 if kind == "steps" else 1,
        "eos_threshold": THRESHOLDS[kind],
        "fuser": {
            "sum": ["num_speakers", "duration_delta"],
            "streaming_sum": [],
            "prepend": ["speaker_wavs", "transcript_in_segment"],
            "cross": [],
        },
        "conditioners": [
            {
                "name": "num_speakers",
                "type": "lut",
                "lut": {
                    "n_bins": NUM_SPEAKER_ROWS,
                    "dim": SPEAKER_WIDTH,
                    "possible_values": [str(number) for number in range(NUM_SPEAKER_ROWS)],
                    "tokenizer": "noop",
                },
            },
            {
                "name": "duration_delta",
                "type": "continuous",
                "continuous": {"dim": DURATION_WIDTH, "scale_factor": 1000.0, "max_period": 10000.0},
            },
        ],
        "model_id": {"sig": "0", "epoch": 1} if kind == "odd" else None,
        "languages": ["en"],
    }
    if kind == "drifting":
        made |= {"conditioners": [], "fuser": made["fuser"] | {"sum": []}}
    return made


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Return a dict from published tensor name to shape."""
    found = shapes_with_times(config(kind))
    if kind != "drifting":
        return found
    left_out = (f"{CONDITIONERS}num_speakers", f"{CONDITIONERS}duration_delta", "flow_lm.flow_net.time_embed")
    return {name: shape for name, shape in found.items() if not name.startswith(left_out)}


def shapes_with_times(record: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a release with an LSD head and all conditions."""
    lm = record["flow_lm"]
    mimi = record["mimi"]
    width = lm["d_model"]
    words = lm["ldim"]
    c = lm["flow_dim"]
    found: dict[str, tuple[int, ...]] = {
        f"{CONDITIONERS}transcript_in_segment.embed.weight": (lm["n_bins"] + 1, lm["lut_dim"]),
        f"{CONDITIONERS}transcript_in_segment.learnt_padding": (1, 1, width),
        f"{CONDITIONERS}speaker_wavs.output_proj.weight": (width, mimi["dimension"]),
        f"{CONDITIONERS}speaker_wavs.learnt_padding": (1, 1, width),
        f"{CONDITIONERS}num_speakers.embed.weight": (NUM_SPEAKER_ROWS + 1, SPEAKER_WIDTH),
        f"{CONDITIONERS}num_speakers.output_proj.weight": (width, SPEAKER_WIDTH),
        f"{CONDITIONERS}num_speakers.learnt_padding": (1, 1, width),
        f"{CONDITIONERS}duration_delta.output_proj.weight": (width, DURATION_WIDTH),
        f"{CONDITIONERS}duration_delta.learnt_padding": (1, 1, width),
        "flow_lm.flow.w_s_t.0.weight": (4, 2),  # for training only
        "flow_lm.emb_mean": (words,),
        "flow_lm.emb_std": (words,),
        "flow_lm.bos_emb": (words,),
        "flow_lm.input_linear.weight": (width, words),
        "flow_lm.out_norm.weight": (width,),
        "flow_lm.out_norm.bias": (width,),
        **linear("flow_lm.out_eos", 1, width),
    }
    for index in range(lm["num_layers"]):
        name = f"flow_lm.transformer.layers.{index}."
        found |= layer_shapes(name, width, lm["dim_feedforward"], width, width)
    found |= flow_shapes("flow_lm.flow_net.", lm["flow_depth"], c, width, words, times=2)
    return found | {f"mimi.{name}": shape for name, shape in codec_shapes(mimi).items()}


def codec_shapes(mimi: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the codec's decoder."""
    width = mimi["transformer_d_model"]
    inner = mimi["transformer_dim_feedforward"]
    found: dict[str, tuple[int, ...]] = {
        "quantizer.output_proj.weight": (mimi["quantizer_output_dimension"], mimi["quantizer_dimension"], 1),
        "upsample.convtr.convtr.weight": (mimi["quantizer_output_dimension"], 1, 32),
    }
    for index in range(mimi["transformer_num_layers"]):
        name = f"decoder_transformer.transformer.layers.{index}."
        found |= layer_shapes(name, width, inner, width, width)
        found |= {f"{name}layer_scale_{k}.scale": (width,) for k in (1, 2)}
    return found | random_pocket.decoder_shapes(mimi)


def tensors(kind: str = "small") -> dict[str, Tensor]:
    """Return the weights of a release."""
    return {name: random_pocket.tensor(name, shape) for name, shape in shapes(kind).items()}


def voice_latents(name: str, width: int = SPEAKER_CODEC_WIDTH) -> Tensor:
    """Return the latents [C, n] of a voice, as the speaker codec would encode a recording."""
    return 0.3 * random_pocket.tensor(f"voice {name}", (width, VOICES[name][0])) * width**0.5


def inputs() -> dict[str, np.ndarray | Tensor]:
    """Return all random numbers of the small releases and their voices by name."""
    found: dict[str, np.ndarray | Tensor] = {f"voice {name}": voice_latents(name) for name in VOICES}
    for kind in dict.fromkeys((*KINDS, *SPOKEN_KINDS)):
        found |= {f"{kind}.{name}": values for name, values in tensors(kind).items()}
    return found


def write_release(folder: Path, kind: str = "small") -> Path:
    """Write a release and return its folder."""
    record = config(kind)
    weights = tensors(kind)
    (folder / "voices").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(record, indent=1))
    table = {"n_bins": record["flow_lm"]["n_bins"], "tokenizer": "tokenizers"}
    random_pocket.write_tokenizer(folder, table)
    save_file(weights, folder / "model.safetensors")
    projection = weights[f"{CONDITIONERS}speaker_wavs.output_proj.weight"]
    for name, (_, is_latent) in VOICES.items():
        latents = voice_latents(name, record["mimi"]["dimension"])
        rows = {"emb": (projection.double() @ latents.double()).T.float().contiguous()}
        save_file({"speaker_wavs": latents} if is_latent else rows, folder / "voices" / f"{name}.safetensors")
    return folder


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps({"written": str(write_release(Path(sys.argv[1]), (*sys.argv[2:], "small")[0]))}))
