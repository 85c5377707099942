"""Conversion of the audio encoder of VITA-Audio-Plus: SenseVoice's `config.yaml` and `am.mvn` next to its weights.

The authors build the encoder from these two files (`AudioEncoder.build_model`, vita_audio/models/
qwen2_mtp_sensevoice_v4_48_3/modeling_sensevoice.py of https://github.com/VITA-MLLM/VITA-Audio); its weights are in the
release. If the release lacks the files, those of https://huggingface.co/FunAudioLLM/SenseVoiceSmall are the same.
"""

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from stretto.checkpoints.tensors import Part, Plan, shapes_of
from stretto.errors import CheckpointError
from stretto.families.audio_format import SENSE_VOICE
from stretto.families.vita_audio.features import DITHER, NUM_BINS, SAMPLE_RATE, STACKED, STEP
from stretto.families.vita_audio.model import SenseVoice
from stretto.untrusted_files import read_text, yaml_mapping

TOWER, ADAPTOR = "model.audio_model.model.", "model.audio_projection."
UNUSED = f"{TOWER}ctc."  # transcription head
NUMBERS = ("output_size", "attention_heads", "linear_units", "num_blocks", "tp_blocks", "kernel_size", "sanm_shfit")
# Supported values, with the defaults of the authors' classes.
MAKE = {
    "model": ("SenseVoiceSmall", None),
    "encoder": ("SenseVoiceEncoderSmall", None),
    "encoder_conf.normalize_before": (True, True),
    "encoder_conf.concat_after": (False, False),
    "encoder_conf.selfattention_layer_type": ("sanm", "sanm"),
    "frontend": ("WavFrontend", None),
    "frontend_conf.fs": (SAMPLE_RATE, 16_000),
    "frontend_conf.window": ("hamming", "hamming"),
    "frontend_conf.n_mels": (NUM_BINS, 80),
    "frontend_conf.frame_length": (25, 25),
    "frontend_conf.frame_shift": (10, 10),
    "frontend_conf.lfr_m": (STACKED, 1),
    "frontend_conf.lfr_n": (STEP, 1),
    "frontend_conf.dither": (DITHER, 1.0),
    "frontend_conf.snip_edges": (True, True),
}


def numbers(folder: Path) -> dict[str, Any]:
    """Return `audio_config` of config.json; CheckpointError if the files are missing or of an unsupported kind."""
    path = folder / "config.yaml"
    record = yaml_mapping(path)
    for name, (wanted, default) in MAKE.items():
        if (got := _at(record, name, default)) != wanted:
            raise CheckpointError(f"{path}: {name}: expected {wanted!r}, got {got!r}")
    found = {name: _at(record, f"encoder_conf.{name}", 0 if name == "sanm_shfit" else None) for name in NUMBERS}
    for name, value in found.items():
        if type(value) is not int or value < 0:
            raise CheckpointError(f"{path}: encoder_conf.{name}: expected a number, got {value!r}")
    width = NUM_BINS * STACKED
    shift, scale = _normalisation(folder / "am.mvn", width)
    return {"model_type": SENSE_VOICE, "num_mel_bins": width, **found, "shift": shift, "scale": scale}


def plan(audio: Mapping[str, Any], hidden_size: int) -> Plan:
    """Return the tensors of the encoder and of the adaptor; names stay except for the prefix."""
    size = audio["output_size"]
    adaptor: dict[str, tuple[int, ...]] = {"pre_proj_layernorm.weight": (size,), "pre_proj_layernorm.bias": (size,)}
    adaptor |= {"mlp.0.weight": (hidden_size, size), "mlp.2.weight": (hidden_size, hidden_size)}
    tower = shapes_of(SenseVoice, audio)
    parts = {f"{TOWER}{name}": Part(f"audio_tower.{name}", shape) for name, shape in tower.items()}
    return parts | {f"{ADAPTOR}{name}": Part(f"adaptor.{name}", shape) for name, shape in adaptor.items()}


def _at(record: Mapping[str, Any], dotted: str, default: Any) -> Any:
    """Return the value of config.yaml at `a.b`, or the default."""
    first, _, second = dotted.partition(".")
    value = record.get(first, {} if second else default)
    if not second:
        return value
    return value.get(second, default) if isinstance(value, Mapping) else None


def _normalisation(path: Path, width: int) -> tuple[list[float], list[float]]:
    """Return shift and scale of each number of a frame, from Kaldi's text form of a network.

    The shift is added first, and the sum is multiplied by the scale.
    """
    try:
        words = read_text(path).split()
    except CheckpointError as error:
        raise CheckpointError(f"{path}: expected the normalisation of audio features, got {error}") from error
    found = []
    for layer in ("<AddShift>", "<Rescale>"):
        try:
            begin = words.index("[", words.index(layer)) + 1
            found.append([float(word) for word in words[begin : words.index("]", begin)]])
        except ValueError as error:
            raise CheckpointError(f"{path}: expected {layer} and {width} numbers, got {error}") from error
        if len(found[-1]) != width:
            raise CheckpointError(f"{path}: {layer}: expected {width} numbers, got {len(found[-1])}")
        if not all(map(isfinite, found[-1])):
            raise CheckpointError(f"{path}: {layer}: expected finite numbers, got NaN or infinity")
    return found[0], found[1]
