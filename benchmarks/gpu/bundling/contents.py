"""Lists of what a bundle contains and leaves out."""

import re
from dataclasses import dataclass
from fnmatch import fnmatch

VLLM = "vllm==0.32.0"
TRITON_SERVER = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")  # its Python backend needs numpy 1
# In addition to vLLM's dependencies: Stretto reads and writes audio, normalises text, and has a client for its server.
OURS = ("soundfile", "soxr", "num2words", "anyascii", "tritonclient[grpc]")

# Dependencies of vLLM, direct or indirect, that `SpeechLLM` does not import: for other models, front ends and hardware,
# and tools. The engine was tested with all of them hidden.
UNUSED = frozenset(
    """
    anthropic blake3 depyf docopt email-validator fastapi-cli fastsafetensors flashinfer-python helion humming-kernels
    ijson instanttensor interegular jsonschema lm-format-enforcer mcp mistral-common model-hosting-container-standards
    nvidia-cudnn-frontend nvidia-cutlass-dsl nvtx opentelemetry-exporter-otlp outlines-core
    prometheus-fastapi-instrumentator pycountry pynvvideocodec python-json-logger quack-kernels tilelang
    tokenspeed-mla torchcodec watchfiles uvicorn httpx httpx-sse python-dotenv rich-toolkit fastar supervisor
    pydantic-settings orjson
    """.split()
)
# Too large to bundle; a GPU host must have them.
REQUIRED_THERE = ("torch", "triton", "transformers", "numpy")

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
    """Return True if file `name` of a wheel is part of a bundle with FlashAttention `2` or `3` for one Python version.

    One of them is required: `vllm.vllm_flash_attn` cannot be imported on CUDA otherwise, whatever attention is used.
    Triton's wheel has a stub for each version of Python.
    """
    if name == FLASH_ATTENTION[flash_attention]:
        return True
    if STUBS in name:
        return f"{STUBS}{python}/" in name
    if library := SHARED_PYTHON.search(name):
        return python == f"3.{library.group(1)}"
    return not any(fnmatch(name, pattern) for pattern in LEFT_OUT)


# A call takes the working tree and the parts along, together at most 64 MiB; the rest is for changes of the tree.
CALL_BYTES = 61 << 20


@dataclass(frozen=True)
class Bundle:
    """Options of `pack`, and the bytes of all parts as it printed them last; they change with vLLM's release."""

    options: tuple[str, ...]
    num_bytes: int

    @property
    def part_bytes(self) -> list[int]:
        """Bytes of each part."""
        size = int(1e6 * float(self.options[self.options.index("--part-mb") + 1])) if "--part-mb" in self.options else 0
        starts = range(0, self.num_bytes, size or self.num_bytes)
        return [min(size or self.num_bytes, self.num_bytes - start) for start in starts]


# Sources are in the working tree, which travels as well.
BUNDLES = {
    "engine": Bundle(("--no-source",), 36_830_312),
    # Two parts, for two transfers to one host. LIBPYTHON: path of libpython3.12.so.1.0
    "served": Bundle(("--no-source", "--triton", "--libpython", '"$LIBPYTHON"', "--part-mb", "39"), 74_149_084),
}
