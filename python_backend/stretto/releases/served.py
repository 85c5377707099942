"""Model repositories of installed models, one for each choice of devices."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard

from stretto.convert.profiles import BALANCED
from stretto.errors import CheckpointError
from stretto.launcher.installation import bundled_repository
from stretto.releases.errors import ReleaseError
from stretto.releases.install import Builder
from stretto.releases.models import InstalledModel, InstalledModels
from stretto.releases.printing import InstallationStage
from stretto.untrusted_files import json_object

RECORD = "served.json"  # in the model repository; written last
STAMP = "stamp"
PROFILE = "profile"


@dataclass(frozen=True)
class Devices:
    """Devices, weight format and profile of a server.

    Attributes:
        gpu: GPU of the model; None to serve on the CPU.
        codec_device: Another GPU for the codec; None for `gpu`.
        quantize: Weight format: int8 on the CPU, fp8 on a GPU; None for the stored one.
        convolutions: How the codec computes convolutions, such as exact.
        mps: True if the launcher runs NVIDIA's MPS.
        serving: Serving profile (`convert.profiles`).
    """

    gpu: int | None = None
    codec_device: int | None = None
    quantize: str | None = None
    convolutions: str = "float32"
    mps: bool = False
    serving: str = BALANCED

    @property
    def folder_name(self) -> str:
        """Name of the model repository in the model's folder."""
        weights = f"-{self.quantize}" if self.quantize else ""
        weights += "" if self.serving == BALANCED else f"-{self.serving}"
        if self.gpu is None:
            return f"served-cpu{weights}"
        codec = "" if self.codec_device is None else f"-codec{self.codec_device}"
        convolutions = "" if self.convolutions == "float32" else f"-{self.convolutions}"
        return f"served-gpu{self.gpu}{codec}{weights}{convolutions}{'-mps' * self.mps}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the server's process. Its GPU 0 is `gpu`, and its GPU 1 the codec's."""
        if self.gpu is None:
            return {}
        numbers = [self.gpu] if self.codec_device is None else [self.gpu, self.codec_device]
        return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, numbers))}

    @property
    def placement(self) -> dict[str, Any] | None:
        """Arguments of `Placement`; None for the CPU."""
        if self.gpu is None:
            return None
        return {
            "gpu": 0,
            "codec_device": None if self.codec_device is None else 1,
            "convolutions": self.convolutions,
            "shares_by_mps": self.mps,
        }


@dataclass(frozen=True)
class Served:
    """A model repository, and the profile of its model."""

    folder: Path
    profile: dict[str, Any]


def served(model: InstalledModel, devices: Devices, models: InstalledModels, builder: Builder) -> Served:
    """Return the model repository of a model; create it if it is missing or was made by another version.

    It is in the model's folder or, if that is read-only, in the user's cache.

    Raises:
        ReleaseError: If the model cannot be served on these devices, or not at all.
    """
    if not model.manifest.serves:
        raise ReleaseError(f"{model.manifest.name} is converted, but no server for it exists")
    folder = model.folder / devices.folder_name
    found = _read(folder)
    if found is None and not os.access(model.folder, os.W_OK):
        models = InstalledModels(model.private_folder)
        folder = models.folder / devices.folder_name
        found = _read(folder)
    if found is not None:
        return found
    with models.lock(model.folder.name):
        found = _read(folder)  # made by another process in the meantime
        if found is None:
            stage = InstallationStage("preparing", devices.folder_name)
            shutil.rmtree(folder, ignore_errors=True)
            manifest = model.manifest
            profile = builder.worker.call(
                "repository",
                checkpoint=str(model.checkpoint),
                out=str(folder),
                model=[manifest.name, manifest.key, manifest.sources[0]["commit"] if manifest.sources else ""],
                placement=devices.placement,
                quantize=devices.quantize,
                gpu=devices.gpu,
                serving=devices.serving,
            )
            (folder / RECORD).write_text(json.dumps({STAMP: stamp(), PROFILE: profile}) + "\n")
            stage.end()
            found = Served(folder, profile)
        return found


def stamp() -> str:
    """Return a digest of this package's version and of the files that it copies into a model repository."""
    digest = hashlib.sha256(version("stretto").encode())
    root = bundled_repository()
    for path in sorted([*root.glob("*/config.pbtxt"), *root.glob("*/1/*.py")]):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _read(folder: Path) -> Served | None:
    """Return a model repository; None if there is none, or another version has made it."""
    try:
        record = json_object(folder / RECORD)
    except CheckpointError:
        return None
    found = record.get(PROFILE)
    return Served(folder, found) if _is_profile(found) and record.get(STAMP) == stamp() else None


def _is_profile(found: object) -> TypeGuard[dict[str, Any]]:
    """Return True if a JSON value has the fields of a model profile that `stretto run` reads."""
    if not (isinstance(found, dict) and isinstance(found.get("family"), str) and _are_words(found.get("voices"))):
        return False
    tasks = found.get("tasks")
    return isinstance(tasks, list) and all(
        isinstance(task, dict)
        and isinstance(task.get("name"), str)
        and isinstance(task.get("speaks"), bool)
        and _are_words(task.get("needs"))
        for task in tasks
    )


def _are_words(found: object) -> bool:
    return isinstance(found, list) and all(isinstance(each, str) for each in found)
