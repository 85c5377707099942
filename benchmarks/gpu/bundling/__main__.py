"""Bundle the files that a GPU host without a network needs, in parts of at most 60 MB, and install them there.

    python -m benchmarks.gpu.bundling pack --out bundle                         # here: vLLM for CUDA, and the rest
    python -m benchmarks.gpu.bundling install --into DIR manifest.json part-01      # there, in one or more calls
    python -m benchmarks.gpu.bundling install --into DIR part-02                    # as the parts arrive

The host must have torch for CUDA, triton, transformers and numpy, for Python 3.12 or the version in `--python`. `pack`
resolves with uv, and downloads with pip, the wheels of vLLM and of those dependencies that the host lacks (`--have`).
It leaves out kernels and distributions that Stretto does not use, and machine code for other GPUs (`contents.py`). It
adds this package with its benchmarks and tests and, with `--kernels`, Triton's cache of compiled kernels. With
`--replies`, it computes the replies of the slow references, with which parity jobs compare, and adds them. It splits
everything into parts and records their SHA-256 checksums.
`install` verifies and stores each part. Once all parts have arrived, it unpacks them and prints the shell line that
sets Python's path. It needs only the standard library.
"""

import argparse
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.gpu.bundling.contents import (
    CALL_BYTES,
    OURS,
    PEERS,
    REQUIRED_THERE,
    TRITON_SERVER,
    UNUSED,
    VLLM,
    is_wanted,
    server_requirements,
    trim,
    without_symbols,
)
from benchmarks.gpu.bundling.parts import (
    KERNELS,
    LIBRARIES,
    REPLIES,
    SITE,
    SOURCE,
    DamagedPart,
    Installation,
    write_parts,
)

ROOT = Path(__file__).parents[3]
COMMON_HOST = ROOT / "benchmarks/gpu/bundling/pytorch_image.txt"
SOURCES = (
    "python_backend",
    "scripts",
    "benchmarks/*.py",
    "benchmarks/*.sh",
    "benchmarks/*.md",
    "lab/*.py",
    "lab/releases/registered",
    "plugins/*/lab/*",
    "plugins/*/tests/*",
    "tests",
    "model_repository",
    "pyproject.toml",
    "README.md",
)


def build_package(folder: Path) -> Path:
    """Build the wheel of this package from the current tree, without weights, because the sources contain them."""
    tree = folder / "package"
    for name in ("python_backend", "contract", "client", "plugins", "model_repository"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, tree / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(tree)], check=True)
    return next(folder.glob("stretto-*.whl"))


def copy_sources(into: Path, with_weights: bool) -> None:
    """Copy tracked scripts, tests and models; the bundled model's weights only if `with_weights`."""
    listed = subprocess.run(["git", "ls-files", "-z", *SOURCES], cwd=ROOT, check=True, capture_output=True, text=True)
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith("python_backend/") or (name.endswith(".safetensors") and not with_weights):
            continue
        (into / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, into / name)


def is_vllm(wheel: Path) -> bool:
    """Return True if `wheel` is the vLLM wheel, whose extensions contain machine code for many GPUs."""
    return wheel.name.startswith("vllm-")


def trim_library(name: str, data: bytes, architecture: int | None, with_ptx: bool) -> bytes:
    """Return a wheel's file, reduced if it is an extension: to the machine code of one GPU, or without its symbols."""
    if not name.endswith(".so"):
        return data
    return without_symbols(data) if architecture is None else trim(data, architecture, with_ptx)


def tree_bytes(root: Path = ROOT) -> int:
    """Return the total size of the files in the working tree that git does not ignore, in bytes."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    files = {root / name for name in filter(None, listed.split("\0"))}
    return sum(path.stat().st_size for path in files if path.is_file())


def pack(arguments: argparse.Namespace, package: Path | None = None) -> dict[str, Any]:
    """Write the parts and return the manifest's contents. `package` None builds the wheel from the current tree."""
    from benchmarks.gpu.bundling.wheels import Wheelhouse, extract, name_of, read_have

    have = read_have(arguments.have)
    lacking = [name for name in REQUIRED_THERE if name not in have]
    if lacking:
        raise SystemExit(f"offline_bundle: {arguments.have}: the target needs {lacking}, which are too large to carry")
    house = Wheelhouse(arguments.wheelhouse, arguments.python, arguments.lock, arguments.offline)
    roots = [VLLM, *OURS, *(server_requirements(ROOT / "pyproject.toml") if arguments.triton else ())]
    roots += PEERS if arguments.peers else ()
    pinned = {name_of(root) for root in (VLLM, *TRITON_SERVER)} & {name_of(root) for root in roots}
    there = (have | UNUSED) - pinned  # a pinned version is brought even if the host has another
    wheels = house.closure([root for root in roots if name_of(root) not in there], there)
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch, "tree")
        names = []
        wanted = partial(is_wanted, flash_attention=arguments.flash_attention, python=arguments.python)
        for wheel in [*wheels, package or build_package(Path(scratch))]:
            architecture = arguments.architecture if is_vllm(wheel) else None
            change = partial(trim_library, architecture=architecture, with_ptx=arguments.ptx)
            extract(wheel, tree / SITE, wanted, change)
            names.append(wheel.name)
        if arguments.libpython:
            (tree / LIBRARIES).mkdir()
            library: Path = arguments.libpython
            (tree / LIBRARIES / library.name).write_bytes(without_symbols(library.read_bytes()))
        if arguments.kernels:
            # The code in other languages, from which a binary is made, is not needed to launch it.
            unused = shutil.ignore_patterns("*.source", "*.ttir", "*.ttgir", "*.llir", "*.ptx")
            shutil.copytree(arguments.kernels, tree / KERNELS, ignore=unused)
        if arguments.replies:
            command = [sys.executable, "-m", "benchmarks.gpu.parity", str(arguments.replies)]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            shutil.copytree(arguments.replies, tree / REPLIES)
        if not arguments.no_source:
            copy_sources(tree / SOURCE, arguments.weights)
        contents = {"python": arguments.python, "architecture": arguments.architecture, "wheels": names}
        manifest = write_parts(tree, arguments.out, int(arguments.part_mb * 1e6), contents)
    for stored in manifest.parts:
        print(f"{stored.name} {stored.size / 1e6:.1f} MB {stored.sha256}")
    size = sum(stored.size for stored in manifest.parts)
    print(f"{len(names)} wheels, {len(manifest.parts)} parts, {size / 1e6:.1f} MB ({size} bytes)")
    print(f"with the working tree {(size + tree_bytes()) / 2**20:.1f} MiB; a call takes {CALL_BYTES >> 20} MiB")
    return contents


def install(arguments: argparse.Namespace) -> int:
    """Store parts, and unpack them once all have arrived; return 0 if the bundle is ready, 3 if parts are missing."""
    installation = Installation(arguments.into)
    if not installation.bundle.exists():
        try:
            missing = installation.take(arguments.parts)
        except DamagedPart as error:
            print(f"offline_bundle: {error}", file=sys.stderr)
            return 1
        if missing:
            print(f"still missing: {' '.join(missing)}")
            return 3
        installation.finish()
        if arguments.path_file:
            installation.write_path_file(Path(sysconfig.get_path("purelib")))
    print(installation.environment)
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack", help="make the parts (needs a network)")
    packing.add_argument("--out", type=Path, required=True, help="empty folder for the parts and their manifest")
    packing.add_argument("--wheelhouse", type=Path, default=Path(".bundle/wheels"), help="folder for downloaded wheels")
    packing.add_argument("--offline", action="store_true", help="use only wheels that are in that folder")
    packing.add_argument(
        "--have",
        type=Path,
        default=COMMON_HOST,
        help="file that lists the packages on the host: one name per line, or output of pip freeze",
    )
    packing.add_argument(
        "--lock", type=Path, default=ROOT / "requirements/embedded.txt", help="file with preferred versions"
    )
    packing.add_argument("--python", default="3.12", help="Python version of the host")
    packing.add_argument(
        "--architecture", type=int, default=90, help="compute capability of the host's GPU; 90: Hopper"
    )
    ptx_help = (
        "keep the PTX of kernels that have no machine code for this GPU; on Hopper, those for int4 weights (5.6 MB)"
    )
    packing.add_argument("--ptx", action="store_true", help=ptx_help)
    packing.add_argument(
        "--libpython", type=Path, help="path of libpython3.12.so.1.0, which a Triton server needs on the host"
    )
    packing.add_argument(
        "--flash-attention",
        choices=["2", "3"],
        default="3",
        help="FlashAttention version; 3: Hopper (11 MB), 2: older GPUs",
    )
    packing.add_argument("--kernels", type=Path, help="folder of kernels compiled by benchmarks.gpu.kernel_cache")
    replies_help = "folder for the replies of the slow references; those that it has are not computed again"
    packing.add_argument("--replies", type=Path, help=replies_help)
    packing.add_argument("--triton", action="store_true", help="include the Triton server's wheel")
    packing.add_argument("--peers", action="store_true", help="include other programs for Qwen3-TTS")
    packing.add_argument("--weights", action="store_true", help="include the bundled model's weights")
    packing.add_argument(
        "--no-source", action="store_true", help="leave out scripts, tests and models, which the host already has"
    )
    packing.add_argument("--part-mb", type=float, default=60.0)
    installing = commands.add_parser("install", help="store parts on the host")
    installing.add_argument("--into", type=Path, required=True)
    path_help = "also write a .pth file into this Python's site-packages: a Triton server's processes ignore PYTHONPATH"
    installing.add_argument("--path-file", action="store_true", help=path_help)
    installing.add_argument("parts", type=Path, nargs="*", help="parts and, once, manifest.json")
    return top


def main(arguments: argparse.Namespace) -> int:
    if arguments.command == "install":
        return install(arguments)
    pack(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main(parser().parse_args()))
