"""Conversion of Chatterbox's S3Gen: the tensors of the decoder, and those in the files of voices.

The tokenizer and the x-vector network of `s3gen.safetensors` are left out. They encode recordings, which the server
does not do for this family; their results for a voice are in its file.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stretto.checkpoints.published import Network
from stretto.checkpoints.release import read_tensors
from stretto.checkpoints.tensors import Part, check
from stretto.codec.s3gen.codec import LONGEST, S3GenCodec
from stretto.codec.s3gen.config import FRAMES_PER_TOKEN, S3GenConfig
from stretto.errors import CheckpointError
from stretto.untrusted_files import released_file

FILE = "s3gen.safetensors"
HEARING = ("tokenizer.", "speaker_encoder.")
TOLD = ("prompt_token", "prompt_feat", "embedding")
# Weights stored as magnitude and direction.
NORMED = re.compile(
    r"mel2wav\.(conv_pre|conv_post|ups\.\d+|(source_)?resblocks\.\d+\.convs[12]\.\d+"
    r"|f0_predictor\.condnet\.\d+)\.weight"
)


def s3gen(folder: Path, voices: Mapping[str, Mapping[str, Any]], num_codes: int) -> Network:
    """Return the codec of a checkpoint.

    Args:
        folder: Folder of the release.
        voices: Contents of the voices' files, by name.
        num_codes: Number of codes of the language model.

    Raises:
        CheckpointError: If anything does not fit; the message names it.
    """
    stored = read_tensors(released_file(folder, FILE))
    speaking = {name: tensor for name, tensor in stored.items() if not name.startswith(HEARING)}
    for number, (name, voice) in enumerate(voices.items()):
        parts = voice_tensors(name, voice, num_codes)
        speaking |= {f"voices.{number}.{part}": tensor for part, tensor in parts.items()}
    config = S3GenConfig.of({name: tuple(tensor.shape) for name, tensor in speaking.items()})
    if config.codebook_size != num_codes:
        raise CheckpointError(f"{folder / FILE}: expected {num_codes} codes, got {config.codebook_size}")
    plan = {name: Part(name, shape) for name, shape in published_shapes(config).items()}
    check(plan, speaking, ())
    return Network("codec", {"model_type": "s3gen", "voices": list(voices)}, plan, speaking)


def published_shapes(config: S3GenConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of the decoder and of the voices, by name."""
    with torch.device("meta"):
        plain = {name: tuple(tensor.shape) for name, tensor in S3GenCodec(config).state_dict().items()}
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in plain.items():
        if NORMED.fullmatch(name):
            stem = f"{name.removesuffix('weight')}parametrizations.weight.original"
            found |= {f"{stem}0": (shape[0], 1, 1), f"{stem}1": shape}
        else:
            found[name] = shape
    return found


def told(name: str, voice: Mapping[str, Any], part: str, names: tuple[str, ...]) -> Mapping[str, Tensor]:
    """Return the tensors `names` of a voice's file for a part of the model, `t3` or `gen`.

    Raises:
        CheckpointError: If one is missing, is not a tensor of floats or of int32 or int64, or is not finite.
    """
    values = voice.get(part)
    if not isinstance(values, dict) or not all(torch.is_tensor(values.get(each)) for each in names):
        raise CheckpointError(f"voice {name}: expected {part}.{f', {part}.'.join(names)}")
    for each in names:
        if not _is_finite(values[each]):
            expected = "finite numbers, real ones or of int32 or int64"
            raise CheckpointError(f"voice {name}: {part}.{each}: expected {expected}, got {values[each].dtype}")
    return {each: values[each] for each in names}


def _is_finite(tensor: Tensor) -> bool:
    """Return True if a tensor holds only numbers that are finite as float32."""
    is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    is_number = tensor.is_floating_point() or tensor.dtype in (torch.int32, torch.int64)
    return is_plain and is_number and bool(tensor.float().isfinite().all())


def voice_tensors(name: str, voice: Mapping[str, Any], num_codes: int) -> dict[str, Tensor]:
    """Return the tensors of the codec's `Voice`; CheckpointError if they do not fit the model.

    The authors' recordings of any length have a mel spectrogram with twice as many frames as tokens, or one more. That
    extra frame has no token and is dropped.
    """
    tokens, mel, speaker = told(name, voice, "gen", TOLD).values()
    is_code = tokens.ndim == 2 and not tokens.is_floating_point() and 0 < tokens.numel() <= LONGEST
    if not is_code or len(tokens) != 1 or not 0 <= int(tokens.min()) <= int(tokens.max()) < num_codes:
        expected = f"codes in [0, {num_codes}), at most {LONGEST}, [1, n]"
        raise CheckpointError(f"voice {name}: prompt_token: expected {expected}, got {list(tokens.shape)}")
    frames = FRAMES_PER_TOKEN * tokens.shape[1]
    if mel.ndim != 3 or len(mel) != 1 or mel.shape[1] - frames not in (0, 1):
        raise CheckpointError(f"voice {name}: prompt_feat: expected [1, {frames}, mels], got {list(mel.shape)}")
    return {"tokens": tokens[0].long(), "mel": mel[0, :frames].float().T, "speaker": speaker.float().flatten()}
