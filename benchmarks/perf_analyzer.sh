#!/usr/bin/env bash
# benchmarks/perf_analyzer.sh [-u HOST:PORT] [-c "1 4 8"] [-r "1 2"] [-i FILE] [-a] [-n REQUESTS] [-o FOLDER] [-- flags of it]
# Streams the sentences of benchmarks/perf_inputs.json through the running server with NVIDIA's perf_analyzer, once per
# concurrency (-c), rate of requests per second at random times (-r) and file of intervals in microseconds (-i), and prints
# percentiles of the first response, the first audio and the gaps between responses. -a: all profiles, 1 to 64 streams,
# five rates, and bursts. The last line is JSON. The exports stay in FOLDER (default: .stretto/perf_analyzer). Loads with
# an error, such as a full server, are listed at the end with status 1, because perf_analyzer ends at the first error.
set -euo pipefail
called_from=$PWD
cd "$(dirname "$0")/.."
url=localhost:8001 concurrencies= rates= intervals= requests=20 cache=.stretto/perf_analyzer out=
version=2.51.0 # the last release whose binary runs on glibc 2.36

usage() { sed -n '2,7s/^# //p' "$0"; exit "${1:-0}"; }
while getopts u:c:r:i:an:o:h flag; do
    case $flag in
        u) url=$OPTARG ;;
        c) concurrencies=$OPTARG ;;
        r) rates=$OPTARG ;;
        i) intervals=$(cd "$called_from" && realpath -m "$OPTARG") ;;
        a) concurrencies="1 2 4 8 16 32 64" rates="0.5 1 2 4 8" intervals=benchmarks/perf_bursts.txt ;;
        n) requests=$OPTARG ;;
        o) out=$(cd "$called_from" && realpath -m "$OPTARG") ;;
        h) usage ;;
        *) usage 2 >&2 ;;
    esac
done
shift $((OPTIND - 1))
out=${out:-$cache/exports}
[ -n "$concurrencies$rates$intervals" ] || concurrencies="1 4"
fail() { echo "perf_analyzer: $*" >&2; exit 3; }

python=$PWD/.venv/bin/python
[ -x "$python" ] || fail "there is no .venv; run scripts/setup.sh first"
export PATH="$PWD/.venv/bin:$PATH"

# Download to a separate folder, because these wheels must not replace those of .venv. Failed downloads start again.
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

# perf_analyzer loads the CUDA runtime even without a GPU. The server's wheel has one under another name.
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

unset http_proxy https_proxy grpc_proxy # gRPC would reach the server through them
mkdir -p "$out"
exports=() unanswered=()
profile() { # <name> <description> <least number of requests that perf_analyzer accepts> <flags of the load ...>
    count=$(awk -v asked="$requests" -v least="$3" 'BEGIN { print asked < least ? int(least + 0.999) : asked }')
    whole=0
    for turn in 1 2 3 4; do # until its exports hold the requested number of complete requests: see perf_report.py
        export_file=$out/$1.$turn.json
        rm -f "$export_file"
        echo "perf_analyzer: $count requests to $url, $2" >&2
        "$binary" -m speech -i grpc -u "$url" --async --streaming --input-data benchmarks/perf_inputs.json \
            --request-count "$count" --profile-export-file "$export_file" "${@:4}" "${more[@]}" >&2 ||
            { unanswered+=("$2"); return 0; }
        if complete=$("$python" -m benchmarks.perf_report --count "$export_file"); then
            exports+=("$export_file")
            whole=$((whole + complete))
        fi
        [ "$whole" -lt "$count" ] || return 0
        echo "perf_analyzer: its exports hold $whole of $count requests: it was truncated, as happens at a value that is not finite" >&2
    done
    [ "$whole" -gt 0 ] || unanswered+=("$2")
}
more=("$@")
for concurrency in $concurrencies; do
    profile "concurrency-$concurrency" "$concurrency at a time" "$concurrency" --concurrency-range "$concurrency"
done
for rate in $rates; do
    profile "rate-$rate" "$rate a second" "$rate" --request-rate-range "$rate:$rate:1" --request-distribution poisson
done
if [ -n "$intervals" ]; then
    name=$(basename "$intervals")
    profile "intervals-${name%%.*}" "at the intervals of $intervals" 1 --request-intervals "$intervals"
fi
status=0
[ "${#exports[@]}" -eq 0 ] || "$python" -m benchmarks.perf_report "${exports[@]}" || status=1
for load in "${unanswered[@]}"; do
    echo "perf_analyzer: ended with an error (see above) or without one complete answer: $load" >&2
    status=1
done
exit $status
