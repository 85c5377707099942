#!/usr/bin/env bash
# By night: the wheel with all that it needs, installed into an empty environment, must speak from an empty folder;
# Qwen3-TTS's own package must say what the tests hold ours to; every answer of 64 streams must be right, or an error,
# whatever is done to the server; then what the suite leaves out, and thousands of random histories, others each
# time, with hypothesis profile $HISTORIES (tests/engine/test_histories.py).
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # without bytecode every start of vLLM takes 10 s longer
scripts/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH" HISTORIES="${HISTORIES:-nightly}"

speak_from_an_empty_environment() (
    . scripts/uv_sources.sh
    empty=$(mktemp -d)
    stretto() { HOME=$empty STRETTO_PORT=18000 "$empty/env/bin/stretto" "$@"; }
    trap 'stretto serve --stop || true; rm -rf "$empty"' EXIT
    uv build --quiet --wheel --out-dir "$empty/wheel"
    python -m venv --without-pip "$empty/env"
    uv pip install --quiet --python "$empty/env/bin/python" --overrides requirements/overrides.txt \
        "$(echo "$empty"/wheel/*.whl)[embedded]"
    mkdir "$empty/folder"
    cd "$empty/folder"
    stretto speak "It is twenty past nine and the garden door is open." --seed 1 --out speech.wav
    heard=$(stretto transcribe speech.wav --seed 1)
    [[ $heard == *garden* ]] || { echo "nightly: it has spoken, and is heard as: $heard" >&2; exit 1; }
)

replies_of_qwen3_tts_are_its_authors() (
    . scripts/uv_sources.sh
    env=$(mktemp -d)
    trap 'rm -rf "$env"' EXIT
    uv venv --quiet --python .venv/bin/python "$env"
    uv pip install --quiet --python "$env/bin/python" torch==2.13.0 transformers==4.57.3 accelerate==1.12.0 librosa \
        soundfile einops
    uv pip install --quiet --python "$env/bin/python" --no-deps qwen-tts==0.1.1
    "$env/bin/python" -m scripts.qwen3_tts_replies --check tests/data/qwen3_tts_replies.npz
)

speak_from_an_empty_environment
replies_of_qwen3_tts_are_its_authors
scripts/soak.sh --minutes 5 --out .stretto/chaos.jsonl --report .stretto/chaos.md
python -m pytest -m nightly
exec python -m pytest tests/engine/test_histories.py "$@"
