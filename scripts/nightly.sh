#!/usr/bin/env bash
# By night: the wheel with all that it needs, installed into an empty environment, must speak from an empty folder;
# NVIDIA's bindings of three releases must know our calls to them;
# Qwen3-TTS's and Chatterbox's own packages and VITA-Audio's own code (where GitHub can be reached) must say what the
# tests hold ours to (VALL-E's is asked by hand: scripts/valle_replies.py reads a source that has been mended by hand);
# every answer of 64 streams must be right, or an error, whatever is done to the server; no package of the environment
# may have a known advisory (where the network has that of OSV); then the nightly tier of the tests (tests/README.md), and thousands of random
# histories, others each time, with hypothesis profile $HISTORIES (tests/engine/test_histories.py).
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

replies_of_chatterbox_are_its_authors() (
    . scripts/uv_sources.sh
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    uv pip install --quiet --target "$folder" --no-deps chatterbox-tts==0.1.7 # read in this environment
    CHATTERBOX_SRC="$folder/chatterbox" python -m scripts.chatterbox_replies --check tests/data/chatterbox_replies.json
)

replies_of_vita_audio_are_its_authors() (
    . scripts/uv_sources.sh
    env=$(mktemp -d)
    trap 'rm -rf "$env"' EXIT
    git clone --quiet https://github.com/VITA-MLLM/VITA-Audio "$env/source" ||
        { echo "nightly: no reply of VITA-Audio is made: its repository cannot be reached from here" >&2; exit 0; }
    git -C "$env/source" checkout --quiet 0abaf17
    uv venv --quiet --python .venv/bin/python "$env/env"
    uv pip install --quiet --python "$env/env/bin/python" torch==2.13.0 transformers==4.48.3
    VITA_SRC="$env/source/vita_audio/models" "$env/env/bin/python" -m scripts.vita_audio_replies --check \
        tests/data/vita_audio_replies.json
)

no_package_is_known_to_be_unsafe() (
    . scripts/uv_sources.sh
    env=$(mktemp -d)
    trap 'rm -rf "$env"' EXIT
    # What is built for the CPU has a local version, which no database of advisories knows.
    sed -E 's/\+[a-z0-9.]+//' requirements/embedded.txt >"$env/requirements.txt"
    curl --silent --max-time 20 --output /dev/null https://api.osv.dev ||
        { echo "nightly: no advisories are read: https://api.osv.dev cannot be reached from here" >&2; exit 0; }
    uv venv --quiet --python .venv/bin/python "$env/tool"
    uv pip install --quiet --python "$env/tool/bin/python" pip-audit==2.9.0
    "$env/tool/bin/pip-audit" --vulnerability-service osv --no-deps --disable-pip --requirement "$env/requirements.txt"
)

calls_to_cuda_are_those_of_its_bindings() (
    . scripts/uv_sources.sh
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    for release in "==12.*" "==13.0.*" ">=13.4.1"; do # the last of each: as images have had them, and as they are now
        uv pip install --quiet --target "$folder/$release" "cuda-bindings$release" || {
            echo "nightly: no call is held to cuda-bindings $release: no registry answers with it" >&2
            continue
        }
        PYTHONPATH="$folder/$release" python -m scripts.cuda_bindings_calls
    done
)

speak_from_an_empty_environment
calls_to_cuda_are_those_of_its_bindings
replies_of_qwen3_tts_are_its_authors
replies_of_chatterbox_are_its_authors
replies_of_vita_audio_are_its_authors
no_package_is_known_to_be_unsafe
scripts/soak.sh --minutes 5 --out .stretto/chaos.jsonl --report .stretto/chaos.md
python -m pytest -m nightly
exec python -m pytest tests/engine/test_histories.py "$@"
