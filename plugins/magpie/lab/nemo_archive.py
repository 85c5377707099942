"""`.nemo` archives in the published layout."""

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor


def write_nemo(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], files: Mapping[str, bytes] | None = None
) -> Path:
    """Write an archive with a config, weights and further files by name; return its path."""
    weights = io.BytesIO()
    torch.save(dict(tensors), weights)
    contents = {
        "model_config.yaml": yaml.safe_dump(dict(config), sort_keys=False).encode(),
        "model_weights.ckpt": weights.getvalue(),
        **(files or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:") as archive:
        folder = tarfile.TarInfo(".")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in contents.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@contextmanager
def edited_nemo(path: Path) -> Iterator[tuple[dict[str, Any], dict[str, Tensor], dict[str, bytes]]]:
    """Yield the config, the weights and the further files of an archive for editing, then write it to a new file."""
    with tarfile.open(path, "r:") as archive:
        members = {member.name.removeprefix("./"): archive.extractfile(member) for member in archive if member.isreg()}
        contents = {name: content.read() for name, content in members.items() if content is not None}
    config = yaml.safe_load(contents.pop("model_config.yaml"))
    tensors = torch.load(io.BytesIO(contents.pop("model_weights.ckpt")))
    yield config, tensors, contents
    path.unlink()  # which may be a link
    write_nemo(path, config, tensors, contents)
