"""Conversion of Phonon releases: names and shapes as published by Gradium.

A release has `config.json`, `model.safetensors` with the language model and the codec's decoder, `tokenizer.json`, and
voices as `voices/<name>.safetensors`. A voice is a sequence of ids: its embedded rows are appended to the embedding
table after the text tokens. The conditions (number of speakers, change of duration) are constants: their sum is added
to the embedding of every latent, as a bias.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stretto.errors import CheckpointError, shown
from stretto.family.conversion import (
    BOUNDED,
    Contents,
    Converted,
    Release,
    check_folded,
    common_record,
    in_lower_case,
    is_bounded,
)
from stretto.untrusted_files import check_value, entry, released_file, released_folder
from stretto.weights.loading import Part, Plan, open_tensors
from stretto_pocket.phonon.family import NAME, PhononVocabulary
from stretto_pocket.pocket_tts.convert import MAX_MODEL_LEN, Shape, codec_network
from stretto_pocket.pocket_tts.convert import plan as pocket_plan
from stretto_pocket.pocket_tts.family import MAX_STEPS

IS_BARE = True  # the tokenizer may be of any kind
IS_FLOAT32 = True  # no other dtype is accepted
TRANSFORMERS = "stretto_pocket.phonon.convert_transformers"
CONDITIONERS = "flow_lm.condition_provider.conditioners."
TEXT = f"{CONDITIONERS}transcript_in_segment."
SPEAKER = f"{CONDITIONERS}speaker_wavs.output_proj.weight"
EMBEDDINGS = f"{TEXT}embed.weight"
NUM_SPEAKERS = f"{CONDITIONERS}num_speakers."
DURATION = f"{CONDITIONERS}duration_delta."
MARKS = {SPEAKER: "Phonon"}
# Tensors for training, for guidance, and of encoders.
DROPPED = (
    *(f"{CONDITIONERS}{name}.learnt_padding" for name in ("transcript_in_segment", "speaker_wavs")),
    *(f"{name}learnt_padding" for name in (NUM_SPEAKERS, DURATION)),
    "flow_lm.flow.w_s_t.",
    "mimi.encoder.",
    "mimi.encoder_transformer.",
    "mimi.downsample.",
    "mimi.quantizer.vq.",
    "mimi.quantizer.logvar_proj.",
    "speaker_mimi.",
)
VOICES = ("voices", "embeddings")
DEFAULT_VOICE = "default-voice.safetensors"
TEMPERATURE = 0.3  # of a release that does not state it
MAX_VOICE_ROWS = 400  # 32 s; with a text and a reply of the maximum length they fit into MAX_MODEL_LEN
SEANET = (
    *("dimension", "n_filters", "n_residual_layers", "ratios", "kernel_size", "residual_kernel_size"),
    *("last_kernel_size", "dilation_base", "compress"),
)
STACK = ("d_model", "num_heads", "num_layers", "dim_feedforward", "context", "max_period")


def located(release: Release) -> Release:
    """Return the release, with the `config.json` of its folder if no config is given."""
    config = release.folder / "config.json"
    return release if release.config is not None or not config.is_file() else replace(release, config=config)


def convert(release: Release, contents: Contents) -> Converted:
    """Return the checkpoint to be written, including all voices in the release folder."""
    pocket = replace(contents, config=pocket_config(contents.config, contents.tensors))
    shape = Shape(pocket.config)
    contents.check_latent_model(shape.num_tokens + 1)
    steps = entry(contents.config, "lsd_decode_steps") if shape.flow == "lsd" else 1
    if not isinstance(steps, int) or not 1 <= steps <= MAX_STEPS:
        raise CheckpointError(f"lsd_decode_steps: expected an integer in [1, {MAX_STEPS}], got {shown(steps)}")
    folded = folded_shapes(shape, contents.config, contents.tensors)
    check_folded(contents.tensors, folded)
    voices = read_voices(release.folder, shape.width, contents.tensors)
    vocabulary = PhononVocabulary(
        num_text_ids=shape.num_tokens + 1,
        num_words=shape.num_words,
        voices=tuple((name, len(rows)) for name, rows in voices.items()),
        flow=shape.flow,
        temperature=float(pocket.config["default_temperature"]),
        steps=steps,
        max_model_len=MAX_MODEL_LEN,
    )
    record = {
        "architectures": ["StrettoPhononForCausalLM"],
        "model_type": "qwen3",  # as for Pocket TTS
        **shape.numbers,
        "max_position_embeddings": MAX_MODEL_LEN,
        **common_record(NAME, vocabulary, vocabulary.vocab_size, contents),
    }
    constant = condition(contents.config, contents.tensors, shape.width)
    parts = plan(shape, contents.tensors, voices, constant)
    return Converted(record, parts, DROPPED, tuple(folded), (codec_network(pocket, clones=False),))


def pocket_config(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return what Pocket TTS's YAML config would contain; raise CheckpointError if a value is not supported."""
    if not isinstance(config.get("flow_lm"), Mapping) or not isinstance(config.get("mimi"), Mapping):
        raise CheckpointError("config.json: expected the sections flow_lm and mimi (Gradium's format), got none")
    lm = config["flow_lm"]
    mimi = config["mimi"]
    width = entry(lm, "d_model")
    for name, got, expected in (
        ("flow_lm.lut_dim", entry(lm, "lut_dim"), width),
        ("flow_lm.time_rms_norm", lm.get("time_rms_norm", "rms_var"), "rms"),
        ("flow_lm.gelu", lm.get("gelu") or "erf", "erf"),
        ("mimi.channels", mimi.get("channels", 1), 1),
        ("voices", config.get("voices") or [], []),
        ("prefix_sinks", config.get("prefix_sinks") or {}, {}),
    ):
        check_value(name, got, expected)
    threshold = entry(config, "eos_threshold")
    temperature = config.get("temp", TEMPERATURE)
    for name, number in (("eos_threshold", threshold), ("temp", temperature)):
        if not isinstance(number, int | float):
            raise CheckpointError(f"config.json: {name}: expected a number, got {shown(number)}")
    # The authors' runtime computes GELU's exact form unless the release has no id, like Pocket TTS's.
    gelu = mimi.get("gelu") or ("tanh" if config.get("model_id") is None else "erf")
    has_times = any(name.startswith("flow_lm.flow_net.time_embed.") for name in tensors)
    dimension = mimi.get("decoder_dimension") or entry(mimi, "dimension")
    return {
        "flow_lm": {
            "transformer": {
                "d_model": width,
                "dim_feedforward": entry(lm, "dim_feedforward"),
                **{name: entry(lm, name) for name in ("num_heads", "num_layers", "max_period")},
            },
            "flow": {
                "type": "lsd" if has_times else "drifting",
                "dim": entry(lm, "flow_dim"),
                "depth": entry(lm, "flow_depth"),
            },
            "lookup_table": {"n_bins": entry(lm, "n_bins")},
        },
        "mimi": {
            "sample_rate": entry(mimi, "sample_rate"),
            "frame_rate": entry(mimi, "frame_rate"),
            "seanet": {"channels": 1, **{name: entry(mimi, name) for name in SEANET}, "dimension": dimension},
            "transformer": {
                **{name: entry(mimi, f"transformer_{name}") for name in STACK},
                "input_dimension": dimension,
                "output_dimensions": [dimension],
                "gelu": gelu,
            },
            "quantizer": {
                "dimension": entry(mimi, "quantizer_dimension"),
                "output_dimension": entry(mimi, "quantizer_output_dimension"),
            },
        },
        "default_eos_threshold": threshold,
        "default_temperature": temperature,
    }


def conditioners(config: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the settings of each condition; raise CheckpointError for an unknown one."""
    for conditioner in config.get("conditioners") or ():
        name, conditioner_type = (
            (conditioner.get("name"), conditioner.get("type")) if isinstance(conditioner, Mapping) else (None, None)
        )
        if (name, conditioner_type) not in (("num_speakers", "lut"), ("duration_delta", "continuous")):
            raise CheckpointError(
                "config.json: conditioners: expected num_speakers (lut) and duration_delta (continuous), "
                f"got {shown(name)} ({shown(conditioner_type)})"
            )
        yield str(name), entry(conditioner, str(conditioner_type))


def folded_shapes(shape: Shape, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that are merged into others."""
    channels = tensors[SPEAKER].shape[-1] if SPEAKER in tensors else 0
    shapes: dict[str, tuple[int, ...]] = {SPEAKER: (shape.width, channels)}
    for name, settings in conditioners(config):
        dim = entry(settings, "dim")
        if name == "num_speakers":
            shapes[f"{NUM_SPEAKERS}embed.weight"] = (entry(settings, "n_bins") + 1, dim)
            shapes[f"{NUM_SPEAKERS}output_proj.weight"] = (shape.width, dim)
        else:
            shapes[f"{DURATION}output_proj.weight"] = (shape.width, dim)
    return shapes


def condition(config: Mapping[str, Any], tensors: Mapping[str, Tensor], width: int) -> Tensor:
    """Return the sum of the conditions, float64 [H]: one speaker, and no change of duration."""
    total = torch.zeros(width, dtype=torch.float64)
    for name, settings in conditioners(config):
        if name == "num_speakers":
            row = tensors[f"{NUM_SPEAKERS}embed.weight"][1].double()  # one speaker
            total += tensors[f"{NUM_SPEAKERS}output_proj.weight"].double() @ row
        else:
            half = entry(settings, "dim") // 2
            angles = torch.cat([torch.ones(half), torch.zeros(half)]).double()  # cosines and sines of 0
            total += tensors[f"{DURATION}output_proj.weight"].double() @ angles
    return total


def plan(shape: Shape, tensors: Mapping[str, Tensor], voices: Mapping[str, Tensor], constant: Tensor) -> Plan:
    """Return the tensors to write, by published name."""
    parts = pocket_plan(shape, tensors, voices, clones=False)
    table = parts.pop("flow_lm.conditioner.embed.weight")
    begin = shape.num_tokens + 1  # row before the first frame

    def with_condition(stored: Tensor) -> Tensor:
        assert table.edit is not None
        rows = table.edit(stored)
        if not rows.is_meta:
            rows[begin] += constant.to(rows.dtype)
        return rows

    def bias(stored: Tensor) -> Tensor:
        return stored.new_empty(shape.width) if stored.is_meta else constant.float()

    parts[EMBEDDINGS] = replace(table, edit=with_condition)
    # No published tensor is the bias. It is written in place of the one that is in the table as the row `begin`.
    parts["flow_lm.bos_emb"] = Part("connector.bias", (shape.num_words,), bias)
    return parts


def read_voices(root: Path, width: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the rows of the voices in a release folder, float32 [n, H], by name. The first voice is the default."""
    files = dict[str, str]()
    for folder in VOICES:
        paths = sorted(released_folder(root, folder).glob("*.safetensors")) if (root / folder).is_dir() else []
        files |= in_lower_case({path.stem: f"{folder}/{path.name}" for path in paths}, f"{root / folder}")
    if (root / DEFAULT_VOICE).is_file():
        files = {"default": DEFAULT_VOICE} | files
    if not files:
        raise CheckpointError(f"{root / VOICES[0]}: expected at least one voice, NAME.safetensors, got none")
    for name in files:
        if not re.fullmatch("[a-z0-9_-]+", name):
            raise CheckpointError(f"{root / files[name]}: expected a name of letters, digits, - and _, got {name!r}")
    return {name: voice_rows(released_file(root, file), width, tensors[SPEAKER]) for name, file in files.items()}


def voice_rows(path: Path, width: int, projection: Tensor) -> Tensor:
    """Return the embedded rows of a voice, float32 [n, H].

    Args:
        path: File with `speaker_wavs`, latents of the speaker codec, [C, n] or [1, C, n]; or with any other single
            tensor, embedded rows [n, H] or [1, n, H].
        width: Width of the language model, H.
        projection: Projection of latents to rows, [H, C].
    """
    stored = open_tensors(path)
    name = next(candidate for candidate in ("emb", "speaker_wavs", *stored) if candidate in stored)
    expected = f"speaker_wavs [{projection.shape[1]}, n] or rows [n, {width}], n at most {MAX_VOICE_ROWS}"
    tensor = stored[name]
    rows = tensor[0] if tensor.ndim == 3 and len(tensor) == 1 else tensor
    if name == "speaker_wavs" and rows.ndim == 2:
        rows = rows.T
    columns = projection.shape[1] if name == "speaker_wavs" else width
    if rows.ndim != 2 or rows.shape[1] != columns or not 0 < len(rows) <= MAX_VOICE_ROWS:
        raise CheckpointError(f"{path}: expected {expected}, got {name} {list(tensor.shape)}")
    if not rows.is_floating_point() or not is_bounded(rows):
        raise CheckpointError(f"{path}: {name}: expected floating-point {BOUNDED}, got others")
    return (rows.double() @ projection.double().T).float() if name == "speaker_wavs" else rows.float()
