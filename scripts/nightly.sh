#!/usr/bin/env bash
# Run the nightly checks. If one fails, the others still run. The last lines list each with its seconds and result.
# - The wheel, installed with its dependencies into an empty environment, generates speech from an empty folder.
# - Three releases of NVIDIA's cuda-bindings accept our calls.
# - The authors' code reproduces the test fixtures of its replies (code that is only on GitHub: if GitHub is reachable).
# - The published detector recognises speech that is marked with `--marker perth`.
# - The GPU code passes the checks that need no GPU (scripts/cuda_without_gpu.sh, if its wheels can be downloaded).
# - The image for CPUs builds, serves, speaks and stops; the one for GPUs builds, without Triton's server, and imports
#   torch and vLLM (scripts/image.py; as root on Debian, with buildah, crun, debootstrap and iproute2).
# - No package in a lock file has a known advisory (if OSV is reachable, or $ADVISORIES is a recent checkout
#   of github.com/pypa/advisory-database).
# - Under injected faults, every answer to 64 streams is correct or an error (scripts/soak.sh); also with live sessions,
#   and if the faults find an idle server.
# - The nightly tier of the tests passes (tests/README.md).
# - Thousands of new random histories pass, with hypothesis profile $HISTORIES (tests/engine/test_histories.py).
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # without bytecode every start of vLLM takes 10 s longer
scripts/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH" HISTORIES="${HISTORIES:-nightly}"

# Usage: not_checked REASON. Ends the subshell of a check that cannot run here. The summary says so, and the run can pass.
not_checked() {
    echo "nightly: not checked, because $1" >&2
    exit 77
}

# Usage: clone URL COMMIT FOLDER [PART]. PART is the only folder that is checked out, if a mirror may lack large files.
clone() {
    git clone --quiet --no-checkout "$1" "$3" || not_checked "$1 is not reachable"
    [[ $# == 3 ]] || git -C "$3" sparse-checkout set "$4"
    git -C "$3" checkout --quiet "$2"
}

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
    transcript=$(stretto transcribe speech.wav --seed 1)
    [[ $transcript == *garden* ]] || { echo "nightly: the speech was recognised as: $transcript" >&2; exit 1; }
)

check_qwen3_tts_replies() (
    . scripts/uv_sources.sh
    env=$(mktemp -d)
    trap 'rm -rf "$env"' EXIT
    uv venv --quiet --python .venv/bin/python "$env"
    uv pip install --quiet --python "$env/bin/python" torch==2.13.0 transformers==4.57.3 accelerate==1.12.0 librosa \
        soundfile einops
    uv pip install --quiet --python "$env/bin/python" --no-deps qwen-tts==0.1.1
    "$env/bin/python" -m lab.authors.qwen3_tts_replies --check tests/data/qwen3_tts_replies.npz
)

check_chatterbox_replies() (
    . scripts/uv_sources.sh
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    clone https://github.com/resemble-ai/chatterbox 5de7a54aa4e5e2baadb0182dde554908b48b85c2 "$folder/source" # imported in this environment
    export CHATTERBOX_SRC="$folder/source/src/chatterbox"
    python -m plugins.chatterbox.lab.chatterbox_replies --check plugins/chatterbox/tests/data/chatterbox_replies.json
    uv pip install --quiet --target "$folder/packages" --no-deps pykakasi==2.3.0 jaconv deprecated wrapt \
        spacy-pkuseg==1.0.2 srsly catalogue
    PYTHONPATH="$folder/packages" python -m plugins.chatterbox.lab.chatterbox_languages --check plugins/chatterbox/tests/data/chatterbox_languages.json
)

check_cosyvoice3_replies() (
    . scripts/uv_sources.sh
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    clone https://github.com/FunAudioLLM/CosyVoice ace7c47f41bbd303aa6bf1ea80e6f9fbd595cd40 "$folder/source"
    uv pip install --quiet --target "$folder/packages" --no-deps x-transformers==2.11.24 einops einx frozendict loguru scipy
    export COSYVOICE_ROOT="$folder/source" PYTHONPATH="$folder/packages"
    python -m plugins.cosyvoice3.lab.cosyvoice3_replies --check plugins/cosyvoice3/tests/data/cosyvoice3_replies.json
    python -m plugins.cosyvoice3.tests.codec.authors --check
)

check_s3gen_results() (
    . scripts/uv_sources.sh
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    uv pip install --quiet --target "$folder" --no-deps diffusers==0.29.0 einops omegaconf scipy \
        antlr4-python3-runtime==4.9.3 chatterbox-tts==0.1.7
    CHATTERBOX_SRC="$folder/chatterbox" PYTHONPATH="$folder" python -m plugins.chatterbox.tests.s3gen.authors --check
)

check_indextts2_results() (
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    clone https://github.com/index-tts/index-tts ee40fa7d6c6b8a2c7f06105f9f1e65775b74868c "$folder" indextts
    INDEX_TTS_SRC="$folder" python -m plugins.indextts2.tests.codec.authors --check
)

check_glm4_voice_results() (
    . scripts/uv_sources.sh
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    clone https://github.com/THUDM/GLM-4-Voice eb00ce9142e8d98b0ed7c57cd47e0d6d5dce9a1a "$folder/glm4_voice"
    clone https://github.com/shivammehta25/Matcha-TTS 108906c603fad5055f2649b3fd71d2bbdf222eac "$folder/matcha"
    uv pip install --quiet --target "$folder/packages" --no-deps diffusers==0.29.0 einops omegaconf scipy \
        antlr4-python3-runtime==4.9.3
    PYTHONPATH="$folder/packages:$folder/glm4_voice:$folder/matcha" python -m tests.codecs.glm4_voice.authors --check
)

check_marks() (
    . scripts/uv_sources.sh
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    uv pip install --quiet --target "$folder" --no-deps resemble-perth==1.0.1
    PYTHONPATH="$folder" python -m pytest -m nightly tests/verification
)

check_chatterbox_voices() (
    . scripts/uv_sources.sh
    env=$(mktemp -d)
    trap 'rm -rf "$env"' EXIT
    uv venv --quiet --python .venv/bin/python "$env/env"
    uv pip install --quiet --python "$env/env/bin/python" torch==2.6.0 torchaudio==2.6.0 transformers==5.2.0 \
        diffusers==0.29.0 conformer==0.3.2 librosa==0.11.0 soundfile einops omegaconf onnx tqdm pyloudnorm \
        'numpy<2'
    uv pip install --quiet --target "$env/source" --no-deps chatterbox-tts==0.1.7 s3tokenizer==0.3.0
    CHATTERBOX_SRC="$env/source/chatterbox" PYTHONPATH="$env/source" "$env/env/bin/python" -m \
        plugins.chatterbox.lab.chatterbox_voices --check plugins/chatterbox/tests/data/chatterbox_voices.npz
)

# Usage: check_replies PLUGIN FAMILY PACKAGE...
# It imports the packages from a temporary folder, and leaves this environment unchanged.
check_replies() (
    . scripts/uv_sources.sh
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    uv pip install --quiet --target "$folder" --no-deps "${@:3}"
    PYTHONPATH=${PYTHONPATH:+$PYTHONPATH:}$folder python -m "plugins.$1.lab.$2_replies" --check \
        "plugins/$1/tests/data/$2_replies.npz"
)

check_pocket_tts_replies() { check_replies pocket pocket_tts pocket-tts==4.0.1 beartype sentencepiece scipy requests; }
check_phonon_replies() { check_replies pocket phonon transformers==5.23.0 huggingface-hub==2.4.0 ptts==0.4.2; }
check_higgs_audio_v3_replies() { check_replies higgs_audio higgs_audio_v3 mlx-audio==0.6.2 mlx==0.32.4 mlx-cpu==0.32.4; }
check_moss_tts_replies() (
    source=$(mktemp -d)
    trap 'rm -rf "$source"' EXIT
    clone https://github.com/OpenMOSS/MOSS-TTS 58b20a0d5fcc6766658d50967a90a9d890009a46 "$source/moss_tts"
    clone https://github.com/OpenMOSS/MOSS-Audio-Tokenizer 56df9eeb88f7236419dbf6328cd2e51f4dc21eeb "$source/moss_codec"
    PYTHONPATH="$source" python -m plugins.moss.lab.moss_tts_replies --check plugins/moss/tests/data/moss_tts_replies.npz
    PYTHONPATH="$source" python -m plugins.moss.lab.moss_tts_local_replies --check plugins/moss/tests/data/moss_tts_local_replies.npz
    clone https://github.com/ml-inory/moss-tts-nano.axera 20017d781d46fe4307574fe05cc84228b4de9bec "$source/moss_nano" models
    PYTHONPATH="$source" python -m plugins.moss.lab.moss_tts_nano_replies --check plugins/moss/tests/data/moss_tts_nano_replies.npz
    PYTHONPATH="$source/moss_tts/moss_tts_realtime" python -m plugins.moss.lab.moss_tts_realtime_replies --check plugins/moss/tests/data/moss_tts_realtime_replies.npz
)

check_kyutai_stt_replies() { check_replies kyutai kyutai_stt moshi==0.2.13 einops sphn==0.1.12; }
check_kyutai_tts_replies() { check_replies kyutai kyutai_tts moshi==0.2.13 einops sphn==0.1.12; }
check_moshi_replies() { check_replies kyutai moshi moshi==0.2.13 einops sphn==0.1.12; }
check_voxcpm2_replies() { check_replies voxcpm2 voxcpm2 voxcpm==2.0.3 einops; }

check_vibevoice_realtime_replies() (
    source=$(mktemp -d)
    trap 'rm -rf "$source"' EXIT
    clone https://github.com/microsoft/VibeVoice e73d1e17c3754f046352014856a922f8208fb5d3 "$source/vibevoice" vibevoice
    PYTHONPATH="$source/vibevoice" check_replies vibevoice vibevoice_realtime transformers==4.51.3 tokenizers==0.21.4 \
        huggingface-hub==0.36.0 diffusers==0.35.2
)

check_personaplex_replies() (
    source=$(mktemp -d)
    trap 'rm -rf "$source"' EXIT
    clone https://github.com/NVIDIA/personaplex 3428dfd95309a7f3c84fd93259ded0f810d1ff91 "$source/personaplex"
    PYTHONPATH="$source/personaplex/moshi" check_replies kyutai personaplex einops sphn==0.1.12
)

check_vita_audio_replies() (
    . scripts/uv_sources.sh
    env=$(mktemp -d)
    trap 'rm -rf "$env"' EXIT
    clone https://github.com/VITA-MLLM/VITA-Audio 0abaf17e333e8239952a183cd0d5e3777b9a9784 "$env/source"
    uv venv --quiet --python .venv/bin/python "$env/env"
    uv pip install --quiet --python "$env/env/bin/python" torch==2.13.0 transformers==4.48.3
    VITA_SRC="$env/source/vita_audio/models" "$env/env/bin/python" -m lab.authors.vita_audio_replies --check \
        tests/data/vita_audio_replies.json
)

check_advisories() (
    . scripts/uv_sources.sh
    locks=()
    for lock in requirements/*.txt; do [[ $lock == */overrides* ]] || locks+=("$lock"); done
    if [[ -n ${ADVISORIES:-} ]]; then
        python -m scripts.advisories "$ADVISORIES" "${locks[@]}"
        last=$(git -C "$ADVISORIES" log -1 --format=%cs)
        [[ $last > $(date --date "30 days ago" +%F) ]] || not_checked "$ADVISORIES has no advisories after $last"
        exit 0
    fi
    curl --silent --max-time 20 --output /dev/null https://api.osv.dev ||
        not_checked 'https://api.osv.dev is not reachable and $ADVISORIES is not set'
    env=$(mktemp -d)
    trap 'rm -rf "$env"' EXIT
    uv venv --quiet --python .venv/bin/python "$env/tool"
    uv pip install --quiet --python "$env/tool/bin/python" pip-audit==2.9.0
    for lock in "${locks[@]}"; do
        # CPU builds have a local version (`+cpu`), which advisory databases do not contain.
        sed -E 's/^([^ ]*==[^ +]*)\+[a-z0-9.]+/\1/' "$lock" >"$env/requirements.txt"
        echo "nightly: $lock"
        "$env/tool/bin/pip-audit" --vulnerability-service osv --no-deps --disable-pip --requirement "$env/requirements.txt"
    done
)

check_cuda_calls() (
    . scripts/uv_sources.sh
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    lacking=()
    for release in "==12.*" "==13.0.*" ">=13.4.1"; do # the latest of each series, in older and current images
        uv pip install --quiet --target "$folder/$release" "cuda-bindings$release" || { lacking+=("$release"); continue; }
        PYTHONPATH="$folder/$release" python -m scripts.cuda_bindings_calls
    done
    [[ ${#lacking[@]} == 0 ]] || not_checked "cuda-bindings could not be installed: ${lacking[*]}"
)

test_nightly_tier() { python -m pytest -m nightly; }
# Comparisons must hold on processors that round differently.
test_margins() { python -m tests.margins -q -m "not nightly" -k "not bfloat16 and not quantization" tests/codecs tests/encoders tests/aligning tests/families tests/engine plugins; }
test_histories() { python -m pytest tests/engine/test_histories.py "$@"; }
soak() { scripts/soak.sh --minutes "$1" --out .stretto/chaos.jsonl "${@:2}"; }
inject_faults() { soak 5; }
inject_faults_into_live_sessions() { soak 2 --load live --streams 16 --faults stop front-end kill; }
inject_faults_at_idle() { soak 0.5 --idle --streams 16; }
check_image() (
    . scripts/uv_sources.sh
    for tool in buildah crun debootstrap ip; do
        command -v "$tool" >/dev/null || not_checked "$tool is not installed"
    done
    [[ $EUID == 0 ]] || not_checked "only root can build images"
    python -m scripts.image cpu gpu
)
check_gpu_code() { scripts/cuda_without_gpu.sh; }

parts=(speak_from_an_empty_environment check_cuda_calls check_qwen3_tts_replies check_chatterbox_replies
    check_chatterbox_voices check_marks check_s3gen_results check_indextts2_results check_glm4_voice_results check_cosyvoice3_replies check_pocket_tts_replies check_phonon_replies check_higgs_audio_v3_replies check_moss_tts_replies check_kyutai_stt_replies check_kyutai_tts_replies
    check_vibevoice_realtime_replies
    check_moshi_replies check_personaplex_replies check_voxcpm2_replies check_vita_audio_replies check_advisories
    check_gpu_code check_image inject_faults inject_faults_into_live_sessions inject_faults_at_idle test_nightly_tier test_margins
    test_histories)
summary=() failed=0
for part in "${parts[@]}"; do
    echo "nightly: $part"
    begun=$SECONDS
    set +e # not `if ("$part")`: a function that is called as a condition ignores `set -e`
    (set -e && "$part" "$@")
    case $? in
        0) result=passed ;;
        77) result='not checked' ;;
        *) result=FAILED failed=1 ;;
    esac
    set -e
    summary+=("$(printf '%6d s  %-11s  %s' $((SECONDS - begun)) "$result" "$part")")
done
printf '%s\n' "${summary[@]}"
exit "$failed"
