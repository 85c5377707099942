"""Options of the launcher in a model repository (`launcher.json`), and the identity of its model."""

import hashlib
import json
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stretto.entry_points import CODECS, FAMILIES, MARKERS, installed
from stretto.errors import CheckpointError, shown
from stretto.launcher.installation import LaunchError
from stretto.untrusted_files import json_object

OPTIONS_FILE = "launcher.json"
SHARES_BY_MPS = "shares_by_mps"
MODEL = "model"
NAME = "name"
KEY = "key"
REVISION = "revision"

# Configuration files of a model repository and of a checkpoint in it.
CONFIGS = ("*.json", "*/config.pbtxt", "*/1/*.json", "*/1/*.py", "*/1/*/*.json", "*/1/*/*/*.json")
FILES = ("*/1/*/*", "*/1/*/*/*")
VOCABULARIES = ("*/1/*/*.model", "*/1/*/*.txt", "*/1/*/*/*.model", "*/1/*/*/*.txt")  # of tokenizers in other formats


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Model of a server, for its pid file. Only name and key are compared.

    Attributes:
        name: Name of the installed model; for other models, the path of the model repository.
        key: Key of the installed model; empty for other models.
        repository: Folder of the model repository; empty if it is unknown.
        revision: Commit of the release from which the model was installed; empty if it is unknown.
        configuration: Digest of the server's configuration (`configuration_digest`); empty if it is unknown.
    """

    name: str
    key: str = ""
    repository: str = field(default="", compare=False)
    revision: str = field(default="", compare=False)
    configuration: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class RepositoryOptions:
    """Options of a model repository.

    Attributes:
        shares_by_mps: True if the launcher runs NVIDIA's MPS, so that processes share a GPU.
        model: The installed model; None for a repository of the user's own.
    """

    shares_by_mps: bool = False
    model: ServedModel | None = None

    def write(self, repository: Path) -> None:
        record: dict[str, Any] = {SHARES_BY_MPS: self.shares_by_mps}
        if self.model is not None:
            revision = {REVISION: self.model.revision} if self.model.revision else {}
            record[MODEL] = {NAME: self.model.name, KEY: self.model.key} | revision
        (repository / OPTIONS_FILE).write_text(json.dumps(record) + "\n")


def read_options(repository: Path) -> RepositoryOptions:
    """Return the options of a model repository; raise LaunchError if they cannot be read."""
    path = repository / OPTIONS_FILE
    if not path.exists():
        return RepositoryOptions()
    try:
        options = json_object(path)
    except CheckpointError as error:
        raise LaunchError(str(error)) from None
    if options.keys() - {SHARES_BY_MPS, MODEL}:
        raise LaunchError(f"{path}: expected an object with {SHARES_BY_MPS} and {MODEL}, got {options!r:.80}")
    shares_by_mps = options.get(SHARES_BY_MPS, False)
    model = options.get(MODEL)
    if not isinstance(shares_by_mps, bool):
        raise LaunchError(f"{path}: {SHARES_BY_MPS}: expected true or false, got {shares_by_mps!r:.80}")
    if model is None:
        return RepositoryOptions(shares_by_mps)
    is_complete = isinstance(model, dict) and {NAME, KEY} <= model.keys() <= {NAME, KEY, REVISION}
    if not is_complete or not all(map(_is_word, model.values())):
        raise LaunchError(f"{path}: {MODEL}: expected an object with {NAME} and {KEY}, got {shown(model)}")
    return RepositoryOptions(shares_by_mps, ServedModel(**model))


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value.isprintable() and bool(value)


def served_model(repository: Path) -> ServedModel:
    """Return the model of a repository: the installed one, or one that is named by the repository's path."""
    path = str(repository.resolve())
    return replace(read_options(repository).model or ServedModel(path), repository=path)


def configuration_digest(repository: Path, arguments: tuple[str, ...] = ()) -> str:
    """Return the SHA-256 of a server's configuration and of the launcher's `arguments` that determine replies.

    It covers the versions of Stretto and its plug-ins, and names and contents of files of the repository and its
    checkpoint: JSON, model configs, code and vocabularies. Weights and versions of other packages are not covered.
    """
    plugins = (installed_plugin for group in (FAMILIES, CODECS, MARKERS) for installed_plugin in installed(group))
    versions = sorted(
        {f"stretto {version('stretto')}", *(f"{plugin.distribution} {plugin.version}" for plugin in plugins)}
    )
    digest = hashlib.sha256(json.dumps([*versions, *arguments]).encode())
    try:
        for path in sorted({path for pattern in CONFIGS + VOCABULARIES for path in repository.glob(pattern)}):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(repository)}\0{content}\0".encode())
    except OSError as error:
        raise LaunchError(f"cannot read {error.filename} ({error.strerror})") from None
    return f"sha256:{digest.hexdigest()}"


def weights_digest(repository: Path) -> str:
    """Return the SHA-256 of the names, sizes and modification times of the files of a repository's checkpoints.

    Their contents are not read, because weights may have many gigabytes.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted({path for pattern in FILES for path in repository.glob(pattern)}):
            if path.is_file() and path.suffix != ".pyc":
                state = path.stat()
                digest.update(f"{path.relative_to(repository)}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    except OSError as error:
        raise LaunchError(f"cannot read {error.filename} ({error.strerror})") from None
    return f"sha256:{digest.hexdigest()}"
