"""What goes into a bundle and what stays out of it, as data."""

from fnmatch import fnmatch

VLLM = "vllm==0.32.0"
TRITON_SERVER = ("nvidia-pytriton==0.7.0", "numpy==1.26.4")  # whose Python backend takes no later numpy
# Beside what vLLM asks for: our own code reads and writes audio, and normalises text.
OURS = ("soundfile", "soxr", "num2words", "anyascii")

# Asked for by vLLM or by what it asks for, and imported by nothing that `SpeechLLM` runs: other models, other front
# ends, other hardware, tools. The engine has run with every one of them hidden.
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
# Far too large to carry, and what a GPU host is bought for: it must have them.
REQUIRED_THERE = ("torch", "triton", "transformers", "numpy")

# Files of vLLM's CUDA wheel that stay behind, with their packed size where it matters.
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


def is_wanted(name: str, flash_attention: str) -> bool:
    """Whether file `name` of vLLM's wheel enters a bundle with FlashAttention `2` or `3`.

    One of them must: `vllm.vllm_flash_attn` cannot be imported on CUDA without, whatever attention runs.
    """
    if name == FLASH_ATTENTION[flash_attention]:
        return True
    return not any(fnmatch(name, pattern) for pattern in LEFT_OUT)
