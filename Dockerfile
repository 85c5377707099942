# Triton's server, stock vLLM and this package in one virtual environment.
#     docker build --tag stretto:0.2.0 .                              # for GPUs; the server comes from the base image
#     docker build --tag stretto:0.2.0-cpu --build-arg TARGET=cpu .   # for CPUs, x86_64; it comes from a wheel
# 26.07 is the oldest base whose Python backend and gRPC front end work here; 26.11 fixes further bugs that affect
# streams (docs/install.md). Its CUDA is newer than torch's, which has its own CUDA libraries.
# For a build that cannot change, pass the digest: --build-arg BASE=nvcr.io/nvidia/tritonserver:26.11-py3@sha256:…
ARG TARGET=gpu
ARG BASE=nvcr.io/nvidia/tritonserver:26.11-py3
ARG CPU_BASE=debian:12.12-slim

FROM ${BASE} AS gpu-base
COPY requirements/gpu.txt /opt/stretto/requirements/packages.txt

FROM ${CPU_BASE} AS cpu-base
COPY requirements/embedded.txt /opt/stretto/requirements/packages.txt

FROM ${TARGET}-base
ARG TARGET
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]

# The Triton language compiles a launcher for its kernels when a model loads. The GPU base has Python, pip and curl.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libnuma1 libpython3-dev python3 python3-pip curl \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/stretto
COPY requirements/uv.txt requirements/
COPY scripts/uv_sources.sh scripts/
RUN python3 -m pip install --no-cache-dir --require-hashes --only-binary :all: --target /opt/uv -r requirements/uv.txt

# First on PATH, so that the stubs of the Python backend use it even if `tritonserver` is started directly.
ENV VIRTUAL_ENV=/opt/venv \
    PATH=/opt/venv/bin:/opt/uv/bin:$PATH \
    PYTHONUTF8=1 \
    LC_ALL=C.UTF-8
RUN uv venv --python /usr/bin/python3 "$VIRTUAL_ENV" \
    && if [[ $TARGET == cpu ]]; then PYTHON=/usr/bin/python3 . scripts/uv_sources.sh; fi \
    && uv pip install --no-cache --no-deps --require-hashes --no-build -r requirements/packages.txt

COPY pyproject.toml setup.py README.md LICENSE ./
COPY python_backend python_backend
COPY contract contract
COPY client client
COPY gateway gateway
COPY plugins plugins
COPY model_repository model_repository
RUN uv pip install --no-cache --no-deps --no-build-isolation . && rm -r build stretto.egg-info
COPY scripts scripts

# The server downloads nothing (`server_environment` in stretto/launcher/installation.py); `stretto run` and `pull` do.
ENV VLLM_NO_USAGE_STATS=1 \
    DO_NOT_TRACK=1 \
    PYTHONPATH=/opt/stretto \
    XDG_CACHE_HOME=/home/stretto/.cache \
    TRITON_CACHE_DIR=/home/stretto/.cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/home/stretto/.cache/inductor

# A new volume over the cache gets the folder's owner.
RUN useradd --create-home --uid 10001 stretto \
    && install --directory --owner=stretto --group=stretto /home/stretto/.cache
USER stretto

EXPOSE 8000 8001 8002 8003
# `stretto run` first downloads and converts a model. Until the first success, the container counts as starting: the
# launcher itself ends a start of more than 600 s, and a download that stalls fails.
HEALTHCHECK --interval=10s --timeout=3s --start-period=21600s --retries=3 \
    CMD ["curl", "--noproxy", "*", "--fail", "--silent", "--output", "/dev/null", "http://localhost:8000/v2/health/ready"]

# Listens on all addresses of the container; the host decides where ports are published (compose.yaml).
CMD ["stretto", "serve", "--model-repository", "model_repository", "--log-file", "-", "--address", "0.0.0.0"]
