"""Installed models: their folders, manifests and locks.

    MODELS/NAME--KEY/manifest.json  checkpoint/  served-…/
    MODELS/.staging-…/              an installation in progress
    MODELS/.locks/                  held during an installation or a removal
    MODELS/accepted.jsonl           accepted licences

A model is written to a staging folder and renamed as a whole. A folder without a valid manifest is not a model. During
an installation, a converter finds the files of a release and of its companions in a `View`.
"""

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from stretto.errors import CheckpointError
from stretto.launcher.installation import LaunchError, cache_folder
from stretto.releases.catalogue import ReleaseEntry, typed_name
from stretto.releases.messages import ReleaseError, disk_errors, line
from stretto.untrusted_files import json_object

FOLDER_VARIABLE = "STRETTO_MODELS"
MANIFEST = "manifest.json"
CHECKPOINT = "checkpoint"
LOCKS = ".locks"
STAGING = ".staging-"
SEPARATOR = "--"
NEW = ".new"  # end of the name of a manifest that is not complete yet
MAIN = "main"  # branch used for a release without a revision
STAGING_LOCK = "lock"  # in a staging folder, held by the process that uses it
FORMAT = 1  # raised with each change of a converter's output, so that models are converted again
KEY_DIGITS = 16


@dataclass(frozen=True)
class Request:
    """Request for a model. For one commit of the repository, equal requests have the same installed model.

    Attributes:
        release: Name in the names table, OWNER/NAME with an optional `#part`, or real path of a folder.
        family: Family that the user named.
        is_half: True to convert float32 weights to bfloat16, for GPUs.
        content: Digest of the names, sizes and times of a folder's files; empty for repositories.
    """

    release: str
    family: str | None = None
    arguments: tuple[str, ...] = ()
    is_half: bool = False
    content: str = ""
    format: int = FORMAT


@dataclass(frozen=True)
class Manifest:
    """Description of an installed model.

    Attributes:
        key: Digest of everything that determines the converted files, 16 hexadecimal digits.
        sources: `repository`, `commit` and `files` of each source; a folder has no commit, and no files in the cache.
        files: Size and SHA-256 of each file of the checkpoint, by path.
        date: Time of the installation, in ISO format.
        resolved: For each revision, time in ISO format at which the hub last named the commit of `sources` for it.
        checkpoint: Absolute path of a checkpoint of the user's own; None for the folder `checkpoint`.
    """

    name: str
    key: str
    request: Request
    family: str
    default_voice: str | None
    licences: Mapping[str, str]
    sources: tuple[Mapping[str, Any], ...]
    files: Mapping[str, Mapping[str, Any]]
    date: str
    version: str
    resolved: Mapping[str, str]
    checkpoint: str | None = None
    serves: bool = True

    @property
    def num_bytes(self) -> int:
        return sum(file["bytes"] for file in self.files.values())

    def resolved_at(self, revision: str) -> str:
        """Return when a revision was last resolved to this model's commit; empty if it never was."""
        is_commit = bool(self.sources) and self.sources[0]["commit"] == revision
        return max(self.resolved.values(), default="") if is_commit else self.resolved.get(revision, "")

    @property
    def cached(self) -> set[tuple[str, str, str]]:
        """Repository, commit and path of each file in the hub's cache from which the model was made."""
        return {
            (source["repository"], source["commit"], name)
            for source in self.sources
            if source["commit"]
            for name in source["files"]
        }


@dataclass(frozen=True)
class InstalledModel:
    """An installed model and its folder."""

    manifest: Manifest
    folder: Path

    @property
    def checkpoint(self) -> Path:
        """Folder of the converted checkpoint."""
        adopted = self.manifest.checkpoint
        return self.folder / CHECKPOINT if adopted is None else Path(adopted)

    @property
    def private_folder(self) -> Path:
        """Folder in the user's cache for model repositories of this model, if its own folder is read-only."""
        digest = hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()
        return user_cache() / "served" / digest[:KEY_DIGITS]

    def damage(self) -> str:
        """Describe a file that is missing or has another size than in the manifest; empty if there is none."""
        for name, facts in self.manifest.files.items():
            try:
                size = (self.checkpoint / name).stat().st_size
            except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no file has such a name
                return f"{name} is missing"
            except OSError as error:
                return f"{name} cannot be read: {error.strerror}"
            if size != facts["bytes"]:
                return f"{name} has {size} bytes, not {facts['bytes']}"
        return ""


def key_of(request: Request, sources: tuple[Mapping[str, Any], ...]) -> str:
    """Return the key of an installed model: a digest of its request and of the files from which it was made."""
    text = json.dumps([asdict(request), sources], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]


def models_folder() -> Path:
    """Return the folder of the installed models; raise ReleaseError if this user has none."""
    named = os.environ.get(FOLDER_VARIABLE, "")
    if named:
        try:
            return Path(named).expanduser().absolute()
        except RuntimeError as error:
            raise ReleaseError(f"{FOLDER_VARIABLE}: {named}: {error}") from None
    return user_cache() / "models"


def user_cache() -> Path:
    """Return the user's cache folder; raise ReleaseError if this user has none."""
    try:
        return cache_folder()
    except LaunchError as error:
        raise ReleaseError(str(error)) from error


@dataclass(frozen=True)
class InstalledModels:
    """The installed models of a folder."""

    folder: Path = field(default_factory=models_folder)

    def all(self) -> list[InstalledModel]:
        """Return the models, sorted by name and time."""
        models = []
        for path in self.folder.glob(f"[!.]*{SEPARATOR}*/{MANIFEST}"):
            manifest = read_manifest(path)
            if manifest is not None and path.parent.name == folder_name(manifest):
                models.append(InstalledModel(manifest, path.parent))
        return sorted(models, key=lambda model: (model.manifest.name, model.manifest.date))

    def find(self, request: Request, revision: str = MAIN) -> InstalledModel | None:
        """Return the installed model for a request; None if there is none, or if it is damaged, which is logged.

        The commit of a branch or tag (`revision`) is the one that the hub has named last.
        """
        answering = [model for model in self.all() if model.manifest.request == request]
        model = max(answering, key=lambda model: model.manifest.resolved_at(revision), default=None)
        if model is None or not model.manifest.resolved_at(revision):
            return None
        if damage := model.damage():
            line("damaged", f"{model.folder}: {damage}")
            return None
        return model

    def with_key(self, name: str, key: str) -> InstalledModel | None:
        """Return the model with this name and key if its files are complete, or None."""
        models = [model for model in self.all() if (model.manifest.name, model.manifest.key) == (name, key)]
        return models[0] if models and not models[0].damage() else None

    def named(self, name: str) -> list[InstalledModel]:
        """Return the models of this release, or else those with this name."""
        models = self.all()
        same = [model for model in models if model.manifest.request.release == name]
        return same or [model for model in models if model.manifest.name == name]

    def listed(self, text: str) -> InstalledModel | None:
        """Return the newest model with a name as in `stretto list`, which may contain capitals or underscores."""
        same = [model for model in self.all() if model.manifest.name == typed_name(text)]
        return same[-1] if same else None

    def cached_for(self, models: Sequence[InstalledModel]) -> set[tuple[str, str, str]]:
        """Return the files in the hub's cache from which only the given models were made, as in `Manifest.cached`."""
        folders = {model.folder for model in models}
        others = {file for model in self.all() if model.folder not in folders for file in model.manifest.cached}
        return {file for model in models for file in model.manifest.cached} - others

    @contextmanager
    def lock(self, name: str) -> Iterator[Callable[[], None]]:
        """Hold the lock of a model's folder, or of a name; wait if another process holds it.

        Yields a function that reports progress to `installing`, by updating the time of the lock file.
        """
        with _opened(self.folder / LOCKS / f"{name}.lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                line("waiting", f"for stretto (pid {file.read(20)}), which installs {name.partition(SEPARATOR)[0]}")
                fcntl.flock(file, fcntl.LOCK_EX)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield partial(os.utime, file.name)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """Yield a new folder, and remove it at the end unless it was renamed; also remove those of ended processes."""
        with _opened(self.folder / f"{STAGING}guard") as guard:
            fcntl.flock(guard, fcntl.LOCK_EX)  # a folder exists without its lock only under the guard
            for old in self.folder.glob(f"{STAGING}*/"):
                _remove_if_free(old)
            folder = self.folder / f"{STAGING}{secrets.token_hex(4)}"
            folder.mkdir()
            lock = (folder / STAGING_LOCK).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with disk_errors(folder):
                yield folder
        except ReleaseError as error:
            error.args = (str(error).replace(str(folder), str(self.folder)),)
            raise
        finally:
            lock.close()
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staging: Path, manifest: Manifest) -> InstalledModel:
        """Write the manifest of a staging folder's model, and rename the folder; the caller holds the model's lock."""
        model = InstalledModel(manifest, self.folder / folder_name(manifest))
        _write(staging, manifest)
        self._discard(model.folder)
        staging.rename(model.folder)
        (model.folder / STAGING_LOCK).unlink()  # until now, another process would have removed the folder without it
        _sync(self.folder)
        return model

    def resolved(self, model: InstalledModel, revision: str) -> InstalledModel:
        """Record in a model's manifest that the hub has named its commit for a revision, and return the model.

        The caller holds the model's lock.
        """
        manifest = replace(model.manifest, resolved={**model.manifest.resolved, revision: now()})
        _write(model.folder, manifest)
        return InstalledModel(manifest, model.folder)

    def remove(self, model: InstalledModel) -> None:
        """Remove a model's folder; raise ReleaseError if it cannot be removed."""
        with self.lock(model.folder.name), disk_errors(model.folder):
            self._discard(model.folder)
        with suppress(ReleaseError):  # a user without a cache has no repositories there
            shutil.rmtree(model.private_folder, ignore_errors=True)

    def _discard(self, folder: Path) -> None:
        """Remove a folder, after renaming it, so that a partly removed folder is never used as a model."""
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            old = folder.rename(self.folder / f"{STAGING}{secrets.token_hex(4)}")
            shutil.rmtree(old, ignore_errors=True)


def now() -> str:
    """Return the time in ISO format, whose alphabetical order is the order in time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def folder_name(manifest: Manifest) -> str:
    return f"{manifest.name}{SEPARATOR}{manifest.key}"


def read_manifest(path: Path) -> Manifest | None:
    """Return the manifest in a file; None if it cannot be read, or another version has written it."""
    with suppress(CheckpointError, AttributeError, KeyError, TypeError):
        record = json_object(path)
        request = Request(**record["request"] | {"arguments": tuple(record["request"]["arguments"])})
        manifest = Manifest(**record | {"request": request, "sources": tuple(record["sources"])})
        texts = [manifest.name, manifest.key, manifest.family, manifest.date, manifest.version, request.release]
        texts += [source[key] for source in manifest.sources for key in ("repository", "commit")]
        texts += [name for source in manifest.sources for name in [*source["files"]]]
        texts += [*manifest.resolved.values()]
        texts += [text for text in (manifest.checkpoint, manifest.default_voice) if text is not None]
        sizes = [file["bytes"] for file in manifest.files.values()]
        if all(isinstance(text, str) for text in texts) and all(type(size) is int for size in sizes):
            return manifest
    return None


def installing(models: InstalledModels) -> dict[str, float]:
    """Return the time since the last progress of each model that a process is installing, by name."""
    progress = {}
    for path in sorted((models.folder / LOCKS).glob("*.lock")):
        with suppress(OSError), path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                progress[path.stem.partition(SEPARATOR)[0]] = time.time() - path.stat().st_mtime
    return progress


def _opened(path: Path) -> TextIO:
    """Open a lock file; raise ReleaseError if the folder of the models cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ReleaseError(f"{error.filename}: {error.strerror}; {FOLDER_VARIABLE} names another folder") from error


def _remove_if_free(folder: Path) -> None:
    """Remove a staging folder whose process has ended."""
    try:
        with (folder / STAGING_LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except OSError:
        return
    shutil.rmtree(folder, ignore_errors=True)


def _write(folder: Path, manifest: Manifest) -> None:
    """Write the manifest in a model's folder, or replace it as a whole."""
    new = folder / f"{MANIFEST}{NEW}"
    with new.open("w") as file:
        json.dump(asdict(manifest), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / MANIFEST)
    _sync(folder)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LENGTH_BYTES = 8  # length field before a safetensors header


class View:
    """Folders that contain only the files of a release, as links, so that unrelated files are not used."""

    def __init__(self, folder: Path, entry: ReleaseEntry, repositories: Sequence[str]) -> None:
        self._folder = folder
        self._entry = entry
        self._repositories = repositories
        places = [companion.to for companion in entry.companions if companion.option is None]
        root = folder / "0"
        self.folders = [root, *(folder / str(n) if to is None else root / to for n, to in enumerate(places, 1))]

    def arguments(self) -> list[str]:
        """Return the converter's arguments for these folders."""
        return self._entry.arguments(self.folders[0], self.folders[1:], self.folders[0])

    def add(self, number: int, name: str, source: Path) -> Path:
        """Add a file of a repository, and return its path."""
        path = self.folders[number] / name
        link(source.resolve(), path)
        return path

    def add_header(self, number: int, name: str, tensors: Mapping[str, Any]) -> None:
        """Add a safetensors file with this header, whose numbers are holes: they take no space and are read as zero.

        Args:
            tensors: For each tensor of the published file its `dtype`, `shape` and `data_offsets`.
        """
        path = self.folders[number] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        header = json.dumps(tensors).encode()
        end = max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(LENGTH_BYTES, "little") + header)
            file.truncate(LENGTH_BYTES + len(header) + end)

    @contextmanager
    def named(self) -> Iterator[None]:
        """In errors raised within the `with` block, replace names of folders by names of repositories."""
        try:
            yield
        except ReleaseError as error:
            message = str(error)
            for folder, repository in zip(self.folders, self._repositories, strict=True):
                message = message.replace(str(folder), repository)
            error.args = (message,)
            raise

    def remove(self) -> None:
        shutil.rmtree(self._folder)


def link(source: Path, target: Path) -> None:
    """Link a file under a second name, or copy it to another file system."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError as error:
        raise ReleaseError(f"{target}: expected one file of this name, got two") from error
    except OSError:
        shutil.copyfile(source, target)
