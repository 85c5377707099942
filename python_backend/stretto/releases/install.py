"""Installation of a release: it is resolved, checked, downloaded, converted and published under its name."""

import argparse
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from stretto.errors import CheckpointError, CommandParser, argument_path
from stretto.machine.gpus import gpu_number
from stretto.releases import fit, licences
from stretto.releases.catalogue import REVISION, UNTESTED, Licence, ReleaseEntry, RepositoryFiles, find
from stretto.releases.hub import Hub, RemoteListing, Snapshot, address, is_offline, read_token
from stretto.releases.jobs import JobProcess
from stretto.releases.messages import (
    BadArgument,
    DoesNotFit,
    InstallationStage,
    ReleaseError,
    Unavailable,
    disk_errors,
    failed,
    gigabytes,
    line,
)
from stretto.releases.store import (
    CHECKPOINT,
    MAIN,
    InstalledModel,
    InstalledModels,
    Manifest,
    Request,
    View,
    folder_name,
    key_of,
    link,
    now,
)
from stretto.releases.target import Target, detect, parse, plain_name
from stretto.untrusted_files import released_file

BUILD = "stretto.releases.build"
LARGE_BYTES = 10_000_000  # minimum size of files whose header is requested before the download
HEADED = ".safetensors"  # files whose header names all tensors and their shapes
WEIGHTS = (HEADED, ".pt", ".pth", ".bin", ".tgz", ".onnx", ".mdl", ".nemo")


@dataclass(frozen=True)
class Choices:
    """Options of an installation.

    Attributes:
        revision: Commit, branch or tag; None for that of the names table, or the newest.
        family: Family to accept; None for any.
        is_offline: True to send no requests to the hub.
        takes_smaller: True to take a smaller release if this one does not fit.
        is_forced: True to install a release that does not fit, and to repeat an installation.
        updates: True to install the newest commit, if no revision is named.
        gpu: GPU to serve on; None to choose.
    """

    revision: str | None = None
    family: str | None = None
    arguments: tuple[str, ...] = ()
    is_offline: bool = False
    accepts_licence: bool = False
    takes_smaller: bool = False
    is_forced: bool = False
    updates: bool = False
    gpu: int | None = None
    is_for_cpu: bool = False


@dataclass(frozen=True)
class ReleaseFiles:
    """Files of one repository, or of the user's folder.

    Attributes:
        source: Repository with its patterns; for a folder, its path.
        snapshot: Commit on the hub; None for a folder.
        files: Files by path, with their `size`.
    """

    source: RepositoryFiles
    snapshot: Snapshot | None
    files: Mapping[str, Mapping[str, Any]]

    @property
    def commit(self) -> str:
        """Commit of the repository; empty for a folder."""
        return "" if self.snapshot is None else self.snapshot.commit

    @property
    def num_bytes(self) -> int:
        return sum(file["size"] for file in self.files.values())


class Installer:
    """Installs releases."""

    def __init__(self, models: InstalledModels, hub: Hub, builder: JobProcess, choices: Choices) -> None:
        self._models = models
        self._hub = hub
        self._builder = builder
        self._choices = choices
        self._progress: Callable[[], None] = lambda: None

    def request(self, target: Target) -> Request:
        """Return the request for a target with these choices."""
        return Request(
            target.release,
            self._choices.family,
            self._choices.arguments,
            prefers_gpu(self._choices.gpu, self._choices.is_for_cpu),
            target.content,
        )

    def _revision(self, target: Target) -> str:
        pinned = None if target.entry is None else target.entry.source.revision
        return self._choices.revision or pinned or MAIN

    def _installed(self, target: Target, request: Request) -> InstalledModel | None:
        """Return the installed model for a target, without a request to the hub, or None.

        The result is also None if the user wants a new installation, or the newest commit, which only the hub knows.
        """
        revision = self._revision(target)
        asks_hub = target.repository is not None and not self._choices.is_offline
        wants_newest = self._choices.updates and asks_hub and not REVISION.fullmatch(revision)
        return None if self._choices.is_forced or wants_newest else self._models.find(request, revision)

    def install_named(self, text: str) -> InstalledModel:
        """Return the model that a command-line word names, after installing it if needed, or raise ReleaseError."""
        try:
            target = parse(text)
        except (BadArgument, Unavailable):
            model = self._models.listed(text)
            if model is None:
                raise
            return self._installed_again(model)
        return self.install(target)

    def _installed_again(self, model: InstalledModel) -> InstalledModel:
        """Return an installed model, or install its release again if the choices require it."""
        request = model.manifest.request
        choices = replace(
            self._choices,
            family=self._choices.family or request.family,
            arguments=self._choices.arguments or request.arguments,
        )
        is_half = prefers_gpu(choices.gpu, choices.is_for_cpu)
        wanted = replace(request, family=choices.family, arguments=choices.arguments, is_half=is_half)
        is_other = choices.is_forced or choices.updates or choices.revision is not None
        if wanted == request and not is_other and not model.damage():
            return model
        self._choices = choices
        return self.install(parse(request.release))

    def install(self, target: Target) -> InstalledModel:
        """Return the model for a target; install it if it is not installed."""
        with disk_errors(self._models.folder):
            return self._install(target)

    def _install(self, target: Target) -> InstalledModel:
        request = self.request(target)
        model = self._installed(target, request)
        if model is not None:
            return model
        if self._choices.is_offline and target.repository is not None:
            raise Unavailable(f"{target.release} is not installed (stretto pull {target.release})")
        if (family := target.checkpoint_family) is not None:
            return self._adopt(target, request, family)
        entry, repos = self._resolve(target)
        try:
            self._check(entry, repos)
        except DoesNotFit as error:
            if not (self._choices.takes_smaller and entry.smaller and (smaller := find(entry.smaller))):
                raise
            line("too large", f"{error}; taking {smaller.name} instead")
            return self._install(Target(smaller.name, entry=smaller, repository=smaller.source.repository))
        sources = tuple(
            {
                "repository": repo.source.repository,
                "commit": repo.commit,
                "files": {name: {"bytes": facts["size"], "hash": _hash(facts)} for name, facts in repo.files.items()},
            }
            for repo in repos
        )
        key = key_of(request, sources)
        revision = self._revision(target)
        with self._models.lock(f"{entry.name}--{key}") as self._progress:
            installed = None if self._choices.is_forced else self._models.with_key(entry.name, key)
            if installed is not None:
                return self._models.resolved(installed, revision)
            return self._make(entry, repos, request, key, revision)

    def _adopt(self, target: Target, request: Request, family: str) -> InstalledModel:
        """Return the model for the user's own checkpoint, which is not copied."""
        assert target.folder is not None
        manifest = _manifest(plain_name(target.folder.name), key_of(request, ()), request, family)
        manifest = replace(manifest, resolved={self._revision(target): manifest.date})
        with self._models.lock(folder_name(manifest)), self._models.staging() as staging:
            return self._models.publish(staging, replace(manifest, checkpoint=str(target.folder)))

    def _resolve(self, target: Target) -> tuple[ReleaseEntry, list[ReleaseFiles]]:
        """Return the entry of a target, and the files of its repository and of its `companions`."""
        choices = self._choices
        entry = target.entry
        if (listing := target.listing) is not None:
            entry = detect(listing, str(listing.path), target.part, choices.family)
            sizes = {name: {"size": size, "sha256": None} for name, size in listing.sizes.items()}
            local = Snapshot(str(listing.path), "", None, sizes)
            repos = [ReleaseFiles(entry.source, None, local.selected(entry.source))]
            try:
                for name in repos[0].files:
                    released_file(listing.path, name)
            except CheckpointError as error:
                raise BadArgument(str(error)) from error
        else:
            assert target.repository is not None
            line("asking", f"{address()} about {target.repository}")
            snapshot = self._hub.snapshot(target.repository, self._revision(target))
            entry = entry or detect(RemoteListing(self._hub, snapshot), target.repository, target.part, choices.family)
            repos = [ReleaseFiles(entry.source, snapshot, snapshot.selected(entry.source))]
        for option in entry.requires:
            if f"--{option}" not in choices.arguments:
                raise BadArgument(f"{entry.name}: the release has no {option}: --with {option}=FOLDER")
        for companion in entry.companions:
            if companion.option is None:
                snapshot = self._hub.snapshot(companion.source.repository, companion.source.revision)
                repos.append(ReleaseFiles(companion.source, snapshot, snapshot.selected(companion.source)))
        return entry, repos

    def _check(self, entry: ReleaseEntry, repos: list[ReleaseFiles]) -> None:
        """Print what will be installed; raise ReleaseError if a licence is not accepted or the release does not fit."""
        stated = {repo.source.repository: _licence(repo) for repo in repos if repo.snapshot is not None}
        for repo in repos:
            commit = f" @ {repo.commit[:7]}" if repo.commit else ""
            licence = stated.get(repo.source.repository)
            about = "" if licence is None else f"   {licences.described(licence)}"
            line(entry.name if repo is repos[0] else "", repo.source.repository + commit + about)
        line("checked", entry.checked or UNTESTED)
        digests = {repo.source.repository: licences.text_digest(repo.snapshot.files) for repo in repos if repo.snapshot}
        licences.require(stated, self._models.folder, self._choices.accepts_licence, digests)
        size = sum(facts["size"] for name, facts in repos[0].files.items() if name.endswith(WEIGHTS))
        device = fit.choose(entry, size, self._choices.gpu, self._choices.is_for_cpu)
        line("device", device.why)
        if device.gpu is None:
            slow = fit.speed_line(entry, size, fit.copy_bandwidth(), fit.product_rate())
            if slow is not None:
                line("", slow)
        if self._choices.is_forced:
            return
        fit.check(entry, size, device)
        missing = sum(_missing(repo) for repo in repos)
        fit.check_disk({cache_folder(): missing, self._models.folder: sum(repo.num_bytes for repo in repos)})

    def _make(
        self, entry: ReleaseEntry, repos: list[ReleaseFiles], request: Request, key: str, revision: str
    ) -> InstalledModel:
        """Download, convert and publish a release. The caller holds the model's lock."""
        with self._models.staging() as staging:
            repositories = [repo.source.repository for repo in repos]
            view = View(staging / "files", entry, repositories)
            if request.arguments:
                with view.named():
                    self._builder.call("parse", words=[*view.arguments(), *request.arguments])
            self._check_shapes(View(staging / "headers", entry, repositories), repos, request)
            hashes: dict[tuple[int, str], Path] = {}
            for number, repo in enumerate(repos):
                for name, facts in self._places(repo).items():
                    hashes[facts["bytes"], facts["sha256"]] = view.add(number, name, Path(facts["place"]))
            stage = InstallationStage("converting", entry.name, sum(repo.num_bytes for repo in repos), self._progress)
            out = staging / CHECKPOINT
            words = [*view.arguments(), *request.arguments]
            with view.named():
                converted = self._builder.call(
                    "convert", stage.advance, words=words, out=str(out), is_half=request.is_half
                )
            num_linked = 0
            for name, facts in converted["files"].items():
                if (source := hashes.get((facts["bytes"], facts["sha256"]))) is not None:
                    (out / name).unlink()
                    link(source, out / name)
                    num_linked += facts["bytes"]
            view.remove()
            written = sum(facts["bytes"] for facts in converted["files"].values()) - num_linked
            about = f"{converted['num_tensors']} tensors, {converted['dtype']}, {gigabytes(written)} written"
            stage.end(f"{about}, {gigabytes(num_linked)} linked" if num_linked else about)
            sources = tuple(
                {"repository": repo.source.repository, "commit": repo.commit, "files": [*repo.files]} for repo in repos
            )
            accepted = {repo.source.repository: _licence(repo).id for repo in repos if repo.snapshot is not None}
            manifest = _manifest(entry.name, key, request, entry.family)
            manifest = replace(
                manifest,
                resolved={revision: manifest.date},
                files=converted["files"],
                sources=sources,
                licences=accepted,
                default_voice=entry.default_voice,
                serves=entry.serves,
            )
            return self._models.publish(staging, manifest)

    def _check_shapes(self, view: View, repos: list[ReleaseFiles], request: Request) -> None:
        """Check that published tensors have the names and shapes that the converter expects, before the download.

        Only the headers of large files are read. Formats other than safetensors have none, so they are not checked.
        """
        large = [name for repo in repos for name, facts in repo.files.items() if facts["size"] >= LARGE_BYTES]
        if not large or not any(map(_missing, repos)) or not all(name.endswith(HEADED) for name in large):
            return
        stage = InstallationStage("checking", f"the headers of {len(large)} files")
        for number, repo in enumerate(repos):
            if repo.snapshot is None:  # the user's folder
                for name in repo.files:
                    view.add(number, name, Path(repo.source.repository) / name)
                continue
            small = {name: facts for name, facts in repo.files.items() if name not in large}
            for name, facts in self._hub.download(repo.snapshot, small, stage.advance).items():
                view.add(number, name, Path(facts["place"]))
            for name in repo.files.keys() & {*large}:
                view.add_header(number, name, self._hub.header(repo.snapshot, name))
        with view.named():
            self._builder.call("check", words=[*view.arguments(), *request.arguments])
        view.remove()
        stage.end()

    def _places(self, repo: ReleaseFiles) -> dict[str, dict[str, Any]]:
        """Return size, SHA-256 and path of the files of one repository, after downloading those that are missing."""
        if repo.snapshot is None:
            folder = Path(repo.source.repository)
            return {
                name: {"bytes": facts["size"], "sha256": "", "place": str(folder / name)}
                for name, facts in repo.files.items()
            }
        about = f"{repo.source.repository}, {len(repo.files)} files"
        stage = InstallationStage("downloading", about, repo.num_bytes, self._progress)
        downloaded = self._hub.download(repo.snapshot, repo.files, stage.advance)
        stage.end(f"{repo.source.repository}: {len(downloaded)} files, {gigabytes(repo.num_bytes)}, hashes are right")
        return downloaded


def prefers_gpu(gpu: int | None, is_for_cpu: bool) -> bool:
    """Return True unless the user wants the CPU or no GPU is usable; `gpu` is the one that the user named."""
    return gpu is not None or (not is_for_cpu and fit.has_cuda_vllm() and bool(fit.gpus()))


def device_of(model: InstalledModel, gpu: int | None, is_for_cpu: bool) -> int | None:
    """Return the GPU for an installed model, or None for the CPU; for the arguments, see `prefers_gpu`."""
    if not prefers_gpu(gpu, is_for_cpu):
        return None
    manifest = model.manifest
    entry = find(manifest.name) or ReleaseEntry(
        manifest.name, manifest.family, RepositoryFiles(manifest.request.release, ("*",)), ()
    )
    return fit.choose(entry, manifest.num_bytes, gpu, is_for_cpu).gpu


def _manifest(name: str, key: str, request: Request, family: str) -> Manifest:
    return Manifest(name, key, request, family, None, {}, (), {}, now(), version("stretto"), {})


def _licence(repo: ReleaseFiles) -> Licence:
    return licences.licence_of(repo.source, None if repo.snapshot is None else repo.snapshot.licence, address())


def _hash(facts: Mapping[str, Any]) -> str | None:
    """Return the identifier of a file's content: its SHA-256, or its git object id."""
    digest: str | None = facts["sha256"] or facts.get("oid")
    return digest


def _missing(repo: ReleaseFiles) -> int:
    """Return the number of bytes of a repository's files that are not in the hub's cache."""
    if repo.snapshot is None:
        return 0
    repository = f"models--{repo.source.repository.replace('/', '--')}"
    folder = cache_folder() / repository / "snapshots" / repo.snapshot.commit
    return sum(facts["size"] for name, facts in repo.files.items() if not (folder / name).exists())


def cache_folder() -> Path:
    """Return the hub's cache folder, by the rules of the hub's client library."""
    named = os.environ.get("HF_HUB_CACHE")
    if named:
        return Path(os.path.expanduser(named))  # a Path raises RuntimeError for an unknown user
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(home)) / "hub"


DTYPES = ("float32", "bfloat16", "float16")


def install_options() -> argparse.ArgumentParser:
    """Return a parent parser with the options of an installation."""
    parser = CommandParser(add_help=False)
    group = parser.add_argument_group("installation")
    add = group.add_argument
    add("--revision", metavar="R", help="commit, branch or tag; default: the tested one, or the newest")
    add("--offline", action="store_true", help="ask the hub nothing; as HF_HUB_OFFLINE=1")
    add("--accept-license", action="store_true", help="accept the licences of the release and what it needs")
    add(
        "--token-file",
        type=argument_path,
        metavar="FILE",
        help="file with an access token; default: HF_TOKEN or hf auth login",
    )
    add("--family", metavar="NAME", help="family of the release, if several fit")
    add("--dtype", choices=DTYPES, help="dtype of the weights; default: as published, but no float32 on a GPU")
    about = "argument of stretto convert FAMILY, such as codec=FOLDER; repeatable"
    add(
        "--with",
        dest="converter",
        type=converter_argument,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=about,
    )
    add("--no-hearing", action="store_true", help="omit the networks that encode voice recordings")
    add("--or-smaller", action="store_true", help="take a smaller release of the same kind if this one does not fit")
    add("--force", action="store_true", help="install again, also what does not fit")
    devices = group.add_mutually_exclusive_group()
    devices.add_argument(
        "--gpu", type=gpu_number, metavar="N", help="GPU to serve on; default: one that fits, or the CPU"
    )
    devices.add_argument("--cpu", action="store_true", help="serve on the CPU")
    return parser


def converter_argument(text: str) -> tuple[str, str]:
    """Parse KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or not key.replace("-", "").isalnum():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    return f"--{key}", value


def choices_of(flags: argparse.Namespace) -> Choices:
    """Return the choices in parsed options."""
    words = [word for pair in flags.converter for word in pair]
    words += ["--dtype", flags.dtype] if flags.dtype else []
    words += ["--no-hearing"] if flags.no_hearing else []
    return Choices(
        revision=flags.revision,
        family=flags.family,
        arguments=tuple(words),
        is_offline=flags.offline or is_offline(),
        accepts_licence=flags.accept_license,
        takes_smaller=flags.or_smaller,
        is_forced=flags.force,
        gpu=flags.gpu,
        is_for_cpu=flags.cpu,
    )


def token_of(flags: argparse.Namespace) -> str | None:
    """Return the token in the file that the user has named; None to use the token in the environment."""
    return None if flags.token_file is None else read_token(flags.token_file)


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """Treat SIGTERM like an interrupt, so that child processes are ended and unfinished folders removed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


PULL = """Command `stretto pull`: download, check and convert a published release.

stretto pull NAME          release of the names table (stretto list --all)
stretto pull OWNER/NAME    repository on the hub; OWNER/NAME#PART for one of several models
stretto pull ./FOLDER      release in a folder
"""


def pull(words: list[str]) -> int:
    """Run `stretto pull` and return its exit code."""
    flags = pull_arguments(words)
    try:
        models = InstalledModels()
        with interrupted_by_sigterm(), Hub(token_of(flags)) as hub, JobProcess(BUILD) as builder:
            installer = Installer(models, hub, builder, replace(choices_of(flags), updates=True))
            model = installer.install_named(flags.release)
            if flags.drop_sources:
                _drop_sources(model, models, hub)
    except ReleaseError as error:
        return failed("pull", error)
    line("installed", f"{model.manifest.name}: {gigabytes(model.manifest.num_bytes)} in {model.folder}")
    return 0


def _drop_sources(model: InstalledModel, models: InstalledModels, hub: Hub) -> None:
    """Remove a model's source files from the hub's cache, unless another installed model was made from them."""
    unused = models.cached_for([model])
    line("removed", f"{gigabytes(hub.remove(unused))} of the hub's cache")
    if kept := model.manifest.cached - unused:
        line("kept", f"{len(kept)} files that other installed models were made from, too")


def pull_arguments(words: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = CommandParser(
        prog="stretto pull",
        description=PULL,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[install_options()],
    )
    parser.add_argument("release", help="name, OWNER/NAME, OWNER/NAME#PART, or path of a folder")
    about = "afterwards remove its files from the hub's cache, except those of other installed models"
    parser.add_argument("--drop-sources", action="store_true", help=about)
    return parser.parse_args(words)
