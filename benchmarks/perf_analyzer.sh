#!/usr/bin/env bash
# benchmarks/perf_analyzer.sh [-u HOST:PORT] [-c "1 4 8"] [-n REQUESTS] [-o FOLDER] [-- flags of perf_analyzer]
# Streams the sentences of benchmarks/perf_inputs.json through the running server with NVIDIA's perf_analyzer, once per
# concurrency, and prints percentiles of the first response, the first audio and the gaps between responses.
# The last line is JSON. The exports stay in FOLDER (default: .stretto/perf_analyzer).
set -euo pipefail
called_from=$PWD
cd "$(dirname "$0")/.."
url=localhost:8001 concurrencies="1 4" requests=20 cache=.stretto/perf_analyzer out=
version=2.51.0 # the last line of wheels whose binary runs on glibc 2.36

usage() { sed -n '2,5s/^# //p' "$0"; exit "${1:-0}"; }
while getopts u:c:n:o:h flag; do
    case $flag in
        u) url=$OPTARG ;;
        c) concurrencies=$OPTARG ;;
        n) requests=$OPTARG ;;
        o) out=$(cd "$called_from" && realpath -m "$OPTARG") ;;
        h) usage ;;
        *) usage 2 >&2 ;;
    esac
done
shift $((OPTIND - 1))
out=${out:-$cache/exports}
fail() { echo "perf_analyzer: $*" >&2; exit 3; }

python=$PWD/.venv/bin/python
[ -x "$python" ] || fail "there is no .venv; run scripts/setup.sh first"
export PATH="$PWD/.venv/bin:$PATH"

# Into a folder of its own: these wheels must not replace those of .venv. A download that failed starts again.
fetch() { # <wheel==version> <folder>
    [ -f "$cache/$2/.complete" ] && return
    echo "perf_analyzer: getting $1 into $cache/$2" >&2
    rm -rf "${cache:?}/$2" && mkdir -p "$cache/$2"
    (. scripts/uv_sources.sh && uv pip install --quiet --python "$python" --no-deps --target "$cache/$2" "$1" >&2) ||
        fail "could not get $1 (see above); run this again"
    touch "$cache/$2/.complete"
}
fetch "tritonclient==$version" tritonclient
binary=$cache/tritonclient/bin/perf_analyzer
[ -x "$binary" ] || fail "the wheel tritonclient $version holds no perf_analyzer for this platform ($(uname -m))"

# It loads the CUDA runtime even where there is no GPU. The server's wheel brings one under another name.
mkdir -p "$cache/lib"
if [ ! -e "$cache/lib/libcudart.so.12" ]; then
    bundled=$(compgen -G "$PWD/.venv/lib/python3.*/site-packages/nvidia_pytriton.libs/libcudart-*.so.12*" | head -n 1 || true)
    if [ -z "$bundled" ]; then
        fetch nvidia-cuda-runtime-cu12==12.6.77 cudart
        bundled=$PWD/$cache/cudart/nvidia/cuda_runtime/lib/libcudart.so.12
    fi
    ln -sfn "$bundled" "$cache/lib/libcudart.so.12"
fi
export LD_LIBRARY_PATH="$PWD/$cache/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
missing=$(ldd "$binary" | awk '/not found/ { print $1 }' | xargs)
[ -z "$missing" ] || fail "missing libraries: $missing (on Debian or Ubuntu: apt-get install libb64-0d)"

mkdir -p "$out"
exports=()
for concurrency in $concurrencies; do
    export_file=$out/concurrency-$concurrency.json
    rm -f "$export_file"
    echo "perf_analyzer: $requests requests to $url, $concurrency at a time" >&2
    "$binary" -m speech -i grpc -u "$url" --async --streaming --input-data benchmarks/perf_inputs.json \
        --request-count "$requests" --concurrency-range "$concurrency" --profile-export-file "$export_file" "$@" >&2 ||
        { echo "perf_analyzer: failed against $url (see above)" >&2; exit 1; }
    exports+=("$export_file")
done
"$python" -m benchmarks.perf_report "${exports[@]}"
