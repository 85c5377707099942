"""Parts of all Chatterbox releases: voices, S3Gen, and the networks that encode recordings."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stretto.codecs.recorded_voices import FRAMES_PER_TOKEN
from stretto.errors import CheckpointError
from stretto.family.conversion import BOUNDED, Network, is_bounded, unchanged
from stretto.untrusted_files import released_file, released_folder
from stretto.weights.loading import Part, check, first, is_plain, open_tensors, read_pickled
from stretto_chatterbox.s3gen import LEAVES_OUT_LAST, LONGEST, MIXER, S3GenCodec, S3GenConfig
from stretto_chatterbox.voices import (
    COUNTERS,
    FOLDER,
    SPEAKER,
    TOKENIZER,
    UNUSED,
    VOICE_ENCODER,
    RecordingEncoder,
    recording_encoder_of,
)

FILE = "s3gen.safetensors"
TURBO_FILE = "s3gen_meanflow.safetensors"
VOICE_ENCODER_FILE = "ve.safetensors"
# state dictionaries
MULTILINGUAL_FILE = "s3gen.pt"
MULTILINGUAL_VOICE_ENCODER = "ve.pt"
HEARING = (TOKENIZER, SPEAKER)
VOICE_TENSORS = ("prompt_token", "prompt_feat", "embedding")
# Weights stored as magnitude and direction.
NORMED = re.compile(
    r"mel2wav\.(conv_pre|conv_post|ups\.\d+|(source_)?resblocks\.\d+\.convs[12]\.\d+"
    r"|f0_predictor\.condnet\.\d+)\.weight"
)


def s3gen(
    folder: Path,
    voices: Mapping[str, Mapping[str, Any]],
    num_codes: int,
    file: str = FILE,
    leaves_out_last: bool = False,
) -> Network:
    """Return the codec to be written, with its voices.

    Args:
        leaves_out_last: True if the samples of an utterance's last token are not played.
    """
    stored = open_networks(released_file(folder, file))
    speaking = {name: tensor for name, tensor in stored.items() if not name.startswith(HEARING)}
    for number, (name, voice) in enumerate(voices.items()):
        parts = voice_tensors(name, voice, num_codes)
        speaking |= {f"voices.{number}.{tensor_name}": tensor for tensor_name, tensor in parts.items()}
    config = S3GenConfig.from_shapes({name: tuple(tensor.shape) for name, tensor in speaking.items()})
    if config.codebook_size != num_codes:
        raise CheckpointError(f"{folder / file}: expected {num_codes} codes, got {config.codebook_size}")
    if config.estimator.is_meanflow != (file == TURBO_FILE):
        expected = f"{'a' if file == TURBO_FILE else 'no'} tensor that ends in {MIXER}"
        raise CheckpointError(f"{folder / file}: expected {expected}")
    plan = unchanged(s3gen_shapes(config))
    check(plan, speaking, ())
    record = {"model_type": "s3gen", "voices": list(voices)} | ({LEAVES_OUT_LAST: True} if leaves_out_last else {})
    return Network("codec", record, plan, speaking)


def recording_encoder_network(
    folder: Path,
    file: str,
    condition: Mapping[str, Tensor],
    network_class: type[RecordingEncoder],
    recording_encoder: str = VOICE_ENCODER_FILE,
) -> Network:
    """Return the networks that encode voice recordings.

    Args:
        file: Name of the codec's file, which contains the tokenizer and the x-vector network.
        condition: Tensors of T3 that compute prompt rows, by published name.
        recording_encoder: Name of the voice encoder's file.
    """
    stored = open_networks(released_file(folder, file))
    try:
        path = released_file(folder, recording_encoder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; --no-hearing converts a release that encodes no recordings") from error
    tensors = {name: tensor for name, tensor in stored.items() if name.startswith(HEARING)}
    tensors |= {f"{VOICE_ENCODER}{name}": tensor for name, tensor in open_networks(path).items()}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in UNUSED and not name.endswith(COUNTERS)}
    shapes = {
        name: tuple(tensor.shape) for name, tensor in recording_encoder_of(tensors, network_class).state_dict().items()
    }
    network = unchanged(shapes)
    check(network, tensors, ())
    network |= {name: Part(name, tuple(tensor.shape)) for name, tensor in condition.items()}
    return Network(FOLDER, {"model_type": "chatterbox_hearing"}, network, tensors | dict(condition))


def open_networks(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors in a file by name, read on access.

    Broadcast tensors in a state dictionary raise CheckpointError, because they could claim to have any size.
    """
    tensors = open_tensors(path)
    odd = (
        []
        if path.suffix == ".safetensors"
        else sorted(name for name, tensor in tensors.items() if not is_plain(tensor))
    )
    if odd:
        raise CheckpointError(f"{path}: expected dense tensors of real numbers, got other values in {first(odd)}")
    return tensors


def s3gen_shapes(config: S3GenConfig) -> dict[str, tuple[int, ...]]:
    """Map the names of all S3Gen and voice tensors to their shapes."""
    with torch.device("meta"):
        plain = {name: tuple(tensor.shape) for name, tensor in S3GenCodec(config).state_dict().items()}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in plain.items():
        if NORMED.fullmatch(name):
            stem = f"{name.removesuffix('weight')}parametrizations.weight.original"
            shapes |= {f"{stem}0": (shape[0], 1, 1), f"{stem}1": shape}
        else:
            shapes[name] = shape
    return shapes


def read_voice_part(name: str, voice: Mapping[str, Any], model: str, names: tuple[str, ...]) -> Mapping[str, Tensor]:
    """Return the tensors called `names` in the part `t3` or `gen` of a voice file."""
    values = voice.get(model)
    if not isinstance(values, dict) or not all(torch.is_tensor(values.get(tensor_name)) for tensor_name in names):
        raise CheckpointError(f"voice {name}: expected the tensors {model}.{f', {model}.'.join(names)}")
    for tensor_name in names:
        if not _is_usable(values[tensor_name]):
            expected = f"int32 or int64, or floating-point {BOUNDED}"
            raise CheckpointError(
                f"voice {name}: {model}.{tensor_name}: expected {expected}, got {values[tensor_name].dtype}"
            )
    return {tensor_name: values[tensor_name] for tensor_name in names}


def _is_usable(tensor: Tensor) -> bool:
    """Return True if a tensor stores all of its elements, which are integers or bounded numbers."""
    is_number = tensor.is_floating_point() or tensor.dtype in (torch.int32, torch.int64)
    return is_plain(tensor) and is_number and (not tensor.is_floating_point() or is_bounded(tensor.float()))


def voice_tensors(name: str, voice: Mapping[str, Any], num_codes: int) -> dict[str, Tensor]:
    """Return the tensors of a voice for the codec's `FlowVoice`.

    In the authors' code, a recording has two mel frames per token and, depending on its length, one extra frame at the
    end. This frame, which has no token, is dropped.
    """
    tokens, mel, speaker = read_voice_part(name, voice, "gen", VOICE_TENSORS).values()
    is_code = tokens.ndim == 2 and not tokens.is_floating_point() and 0 < tokens.numel() <= LONGEST
    if not is_code or len(tokens) != 1 or not 0 <= int(tokens.min()) <= int(tokens.max()) < num_codes:
        expected = f"codes of shape [1, n], n <= {LONGEST}, in [0, {num_codes})"
        raise CheckpointError(f"voice {name}: prompt_token: expected {expected}, got {described(tokens)}")
    frames = FRAMES_PER_TOKEN * tokens.shape[1]
    if mel.ndim != 3 or len(mel) != 1 or mel.shape[1] - frames not in (0, 1):
        raise CheckpointError(f"voice {name}: prompt_feat: expected shape [1, {frames}, mels], got {list(mel.shape)}")
    return {"tokens": tokens[0].long(), "mel": mel[0, :frames].float().T, "speaker": speaker.float().flatten()}


EMBEDDINGS = "text_emb.weight"
HEAD = "speech_head.weight"
HEAD_BIAS = "speech_head.bias"
LAYERS = "tfmr."  # prefix of the backbone's tensors
MAX_ROWS = 4096  # rows of prompt and reply; at most the number of speech positions, which limits a reply
X_VECTOR = 256  # width of the voice encoder's x-vector
DEFAULT = "conds.pt"
VOICES = "voices"
TOLD = ("speaker_emb", "cond_prompt_speech_tokens", "emotion_adv")


def read_voices(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Return the contents of the voice files by voice name, with the default voice first."""
    voices = {"default": read_voice(released_file(folder, DEFAULT))}
    for path in sorted(released_folder(folder, VOICES).glob("*.pt")):
        if not re.fullmatch("[a-z0-9_-]+", path.stem) or path.stem in voices:
            expected = "a name of lower-case letters, digits, - and _ other than default"
            raise CheckpointError(f"{path}: expected {expected}, got {path.stem!r}")
        voices[path.stem] = read_voice(released_file(folder, f"{VOICES}/{path.name}"))
    return voices


def read_voice(path: Path) -> Mapping[str, Any]:
    """Return the T3 and S3Gen tensors of a voice from a file of the authors' `Conditionals`."""
    stored = read_pickled(path, "a voice")
    if not isinstance(stored, dict):
        raise CheckpointError(f"{path}: expected a voice, got {type(stored).__name__}")
    return stored


def described(values: Tensor) -> str:
    """Return the shape of a tensor and the range of its values, for an error message."""
    span = f" with values in [{values.min():g}, {values.max():g}]" if values.numel() else ""
    return f"shape {list(values.shape)}{span}"
