"""Random tensors by published name, identical on every machine, their files, and a small tokenizer, without torch."""

import json
import math
import zlib
from collections.abc import Collection, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np


def random_tensors(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Return random float32 tensors, in the order of `shapes`, of a language model whose best logit leads clearly."""
    random = np.random.Generator(np.random.PCG64(seed))
    found = {}
    for name, shape in shapes.items():
        noise = random.standard_normal(shape)
        if "norm" in name:
            noise = 1 + 0.2 * noise
        elif name.endswith("bias"):
            noise *= 0.3
        elif "embed" in name:
            noise *= 0.5
        else:
            noise *= 0.3 if "head" in name else 1.5 * shape[-1] ** -0.5
        found[name] = noise.astype(np.float32)
    return found


def drawn_by_name(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a float32 tensor that depends only on its name and shape, for networks that encode audio."""
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    if len(shape) > 1:
        values = draw.standard_normal(shape) * (2 if "project_down" in name else 1) / math.sqrt(math.prod(shape[1:]))
    elif name.endswith(("running_var", "weight")):
        values = draw.uniform(0.5, 1.5, shape)
    else:
        values = 0.1 * draw.standard_normal(shape)
    return values.astype(np.float32)


INDEX = "model.safetensors.index.json"


def split_weights(folder: Path, num_shards: int, name: str = "model") -> None:
    """Replace `model.safetensors` in a folder by shards `NAME-0000N-of-0000M.safetensors` and their index."""
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number in range(num_shards):
        file = f"{name}-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        names = sorted(tensors)[number::num_shards]
        save_file({each: tensors[each] for each in names}, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(each.nbytes for each in tensors.values())}, "weight_map": weight_map}
    (folder / INDEX.replace("model", name, 1)).write_text(json.dumps(index))


USER_DEFINED = 4  # type of a SentencePiece piece that is never divided


def sentencepiece_model(scored: list[tuple[str, float]], whole: Collection[str] = ()) -> bytes:
    """Return a serialised SentencePiece unigram model, whose first piece represents unknown characters.

    Args:
        scored: Pieces, with the logarithms of their probabilities.
        whole: Pieces that are one token wherever they are in a text.
    """
    formats: Any = import_module("transformers.utils.sentencepiece_model_pb2_new")  # SentencePiece's needs protobuf 7
    model = formats.ModelProto()
    for at, (piece, score) in enumerate(scored):
        usual = 1 if at else 2
        model.pieces.add(piece=piece, score=score, type=USER_DEFINED if piece in whole else usual)
    model.trainer_spec.model_type = 1
    model.normalizer_spec.add_dummy_prefix = model.normalizer_spec.remove_extra_whitespaces = True
    model.normalizer_spec.escape_whitespaces = True
    return bytes(model.SerializeToString())
