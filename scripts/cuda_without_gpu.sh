#!/usr/bin/env bash
# Check the GPU code without a GPU, with the CUDA builds of torch and vLLM and stand-ins for the driver's libraries.
# - A bundle for a GPU host (benchmarks/gpu/bundling) installs, and every benchmark job loads from the bundle only.
# - vLLM configurations for all benchmark models can be created. The imports do not initialise CUDA, so jobs can fork.
# - Depth transformers and MCTP modules launch no more operators than expected in a server's configuration.
# - The kernels of the job `kernels` compile for sm_90 into FOLDER/kernels, which a bundle can carry.
# - All kernels compile for sm_80, sm_90 and sm_100 with the Triton release of such a host.
# The script downloads about 3 GB and takes about ten minutes. If a download fails, it prints a message and exits with 77.
# Usage: scripts/cuda_without_gpu.sh [FOLDER]   (keeps environment and bundle in FOLDER; default: a temporary folder)
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/uv_sources.sh
export PATH="$PWD/.venv/bin:$PATH"
unset UV_TORCH_BACKEND # CUDA builds here
if [[ $# -gt 0 ]]; then
    folder=$(mkdir -p "$1" && cd "$1" && pwd)
else
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi

skip() {
    echo "cuda_without_gpu: skipped, because $1" >&2
    exit 77
}

if [[ ! -d $folder/env ]]; then
    python=$(ls "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python3.12 2>/dev/null | head -1)
    uv venv --quiet --python "${python:-3.12}" "$folder/env" || skip "Python 3.12 is not available"
    # As on the host of the benchmarks.
    printf '%s\n' torch==2.11.0 torchaudio==2.11.0 triton==3.6.0 transformers==5.17.0 huggingface-hub==1.33.0 >"$folder/versions"
    uv pip install --quiet --python "$folder/env/bin/python" --constraint "$folder/versions" \
        --requirement benchmarks/gpu/bundling/pytorch_image.txt ||
        { rm -rf "$folder/env"; skip "the CUDA build of torch could not be downloaded"; }
fi
if [[ ! -d $folder/there ]]; then
    python -m benchmarks.gpu.bundling pack --out "$folder/bundle" --wheelhouse "$folder/wheels" ||
        skip "the wheels of vLLM could not be downloaded"
    "$folder/env/bin/python" -m benchmarks.gpu.bundling install --into "$folder/there" "$folder"/bundle/*
fi
mkdir -p "$folder/stubs"
cc -w -shared -fPIC -o "$folder/stubs/libcuda.so.1" tests/cuda_stubs/libcuda.c
cc -w -shared -fPIC -o "$folder/stubs/libnvidia-ml.so.1" tests/cuda_stubs/libnvidia-ml.c
export LD_LIBRARY_PATH="$folder/stubs" PYTORCH_NVML_BASED_CUDA_CHECK=1
export PYTHONPATH="$folder/there/bundle/site:$folder/there/bundle/source" PYTHONDONTWRITEBYTECODE=1
cd "$folder" # nothing is imported from the working tree
"$folder/env/bin/python" -m tests.engine.kernels.gpu.deployed
TRITON_CACHE_DIR="$folder/kernels" "$folder/env/bin/python" -m benchmarks.gpu.kernel_cache 90
TRITON_CACHE_DIR="$folder/cache" "$folder/env/bin/python" -m tests.engine.kernels.gpu.compile 80 90 100
