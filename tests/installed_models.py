"""Installed models without weights, for tests of the commands that use them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from stretto.launcher.options import RepositoryOptions, ServedModel
from stretto.releases import run as served
from stretto.releases.store import CHECKPOINT, MAIN, InstalledModel, InstalledModels, Manifest, Request, key_of

TTS = {"name": "tts", "needs": ["text"], "also": [], "speaks": True}
ASR = {"name": "asr", "needs": ["audio"], "also": [], "speaks": False}
DUPLEX = {"name": "duplex", "needs": ["audio"], "also": [], "speaks": True}
CHAT = {"name": "chat", "needs": ["text"], "also": [], "speaks": False}
CONTENT = b"weights"
DATE = "2026-11-25T10:00:00.000000+00:00"


def profile(*tasks: dict[str, Any], voices: tuple[str, ...] = ("alba", "jean")) -> dict[str, Any]:
    """Return the part of a model profile that `stretto run` reads; the default task is text to speech."""
    return {"family": "tiny", "tasks": list(tasks or (TTS,)), "voices": list(voices)}


def install(folder: Path, release: str = "acme/voice", **settings: Any) -> InstalledModel:
    """Publish a model with one file; `settings` are attributes of its manifest."""
    name = release.rpartition("/")[2]
    request = Request(release)
    source = {"repository": release, "commit": "c" * 40, "files": ["model.safetensors"]}
    manifest = Manifest(
        name=name,
        key=key_of(request, ()),
        request=request,
        family="tiny",
        default_voice=None,
        licences={release: "mit"},
        sources=(source,),
        files={"model.safetensors": {"bytes": len(CONTENT), "sha256": "0" * 64}},
        date=DATE,
        version="0",
        resolved={MAIN: settings.get("date", DATE)},
    )
    models = InstalledModels(folder)
    with models.staging() as staging:
        (staging / CHECKPOINT).mkdir()
        (staging / CHECKPOINT / "model.safetensors").write_bytes(CONTENT)
        return models.publish(staging, replace(manifest, **settings))


def serve(model: InstalledModel, found: dict[str, Any] | None = None, folder_name: str = "served-cpu") -> Path:
    """Write the record and the options of a model's repository, which has no models, and return its folder."""
    folder = model.folder / folder_name
    folder.mkdir()
    RepositoryOptions(model=ServedModel(model.manifest.name, model.manifest.key)).write(folder)
    record = {served.STAMP: served.stamp(), served.PROFILE: found or profile()}
    (folder / served.RECORD).write_text(json.dumps(record))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of each file in a folder by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
