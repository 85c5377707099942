"""Small random releases of PersonaPlex in the published layout, with the oracle's weights (`random_kyutai_stt`)."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from plugins.kyutai.lab import random_kyutai_stt, random_moshi
from stretto_kyutai.kyutai_stt.family import PAD
from stretto_kyutai.personaplex.family import SINE

CONFIG: dict[str, Any] = {
    **random_moshi.CONFIG,
    "model_type": "personaplex",
    "version": "v1",
    "card": 2048,  # the codes of silence need as many
    "dep_q": 16,
}
VOICES = {"NATF0": 15, "NATM1": 2, "VARM4": 34}  # numbers of frames; the last voice is longer than the window


def voice_codes(name: str) -> np.ndarray:
    """Return the codes of a voice's recording, int64 [8, V]."""
    number = sorted(VOICES).index(name)
    return np.random.default_rng([3, number]).integers(0, CONFIG["card"], (8, VOICES[name]))


def voice_file(codes: np.ndarray, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the contents of a published voice file: the sums of embeddings of all rows but the last, and the last ids.

    Args:
        codes: Codes of the recording, [8, V].
        tensors: Tensors of the release by published name.
        config: Hyperparameters of the release.
    """
    delays = config["delays"]
    num_frames = codes.shape[1]
    initial = [config["text_card"], *[config["card"]] * 16]
    tables = [tensors["text_emb.weight"], *(tensors[f"emb.{k}.weight"] for k in range(16))]
    cache = torch.full((1, 17, max(delays) + 3), -2)
    vectors = []
    for row in range(num_frames + max(delays)):
        for stream, delay in enumerate(delays):
            frame = row - delay
            if frame < num_frames:
                said = [PAD, *codes[:, frame], *SINE]
                cache[0, stream, row % cache.shape[2]] = int(said[stream] if frame > 0 else initial[stream])
        if row < num_frames - 1:
            ids = cache[0, :, row % cache.shape[2]].tolist()
            vectors.append(torch.stack([table[token] for table, token in zip(tables, ids, strict=True)]).sum(0))
    return {"embeddings": torch.stack(vectors)[:, None, None], "cache": cache}


def write_archive(path: Path, files: Mapping[str, Any]) -> None:
    """Write an archive of files with these contents: bytes, or objects for `torch.save`."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            data = io.BytesIO(content if isinstance(content, bytes) else b"")
            if not isinstance(content, bytes):
                torch.save(content, data)
            member = tarfile.TarInfo(name)
            member.size = len(data.getvalue())
            data.seek(0)
            archive.addfile(member, data)


def write_release(folder: Path, seed: int = 7, **changed: Any) -> Path:
    """Write a release; `changed` replaces fields of its config.json."""
    config = {**CONFIG, **changed}
    random_kyutai_stt.write_parts(folder, config, seed)
    (folder / "config.json").write_text(json.dumps(config))
    shapes = random_moshi.lm_shapes(config)
    tensors = {name: random_kyutai_stt.values(name, shape, seed) for name, shape in shapes.items()}
    save_file(tensors, folder / config["moshi_name"])
    voices = {f"voices/{name}.pt": voice_file(voice_codes(name), tensors, config) for name in VOICES}
    write_archive(folder / "voices.tgz", voices)
    return folder
