#!/usr/bin/env bash
# scripts/speak.sh "text" [client options]   speaks the text: sets up .venv and starts the server where needed
# scripts/speak.sh --stop                    stops the server that it started
# The server stays up for the next call. STRETTO_PORT (default 8000) is its HTTP port; gRPC is the next, metrics the one after.
set -euo pipefail
called_from=$PWD
cd "$(dirname "$0")/.."
port=${STRETTO_PORT:-8000}
state=.stretto
pid_file=$state/server-$port.pid
log=$state/server-$port.log

usage() { sed -n '2,4s/^# //p' "$0"; exit "${1:-0}"; }
running() { [ -f "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null; }
ready() {
    .venv/bin/python - "$port" <<'PYTHON' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(f"http://localhost:{sys.argv[1]}/v2/health/ready", timeout=2)
PYTHON
}

stop() {
    running || { echo "no server of this folder is running on port $port"; return; }
    kill -TERM "$(cat "$pid_file")"
    for _ in $(seq 120); do running || break; sleep 0.5; done
    running && { echo "the server did not stop; see $log" >&2; exit 1; }
    rm -f "$pid_file"
    echo "server stopped"
}

start() {
    mkdir -p "$state"
    echo "starting the server on ports $port (HTTP), $((port + 1)) (gRPC), $((port + 2)) (metrics); log: $log"
    setsid nohup .venv/bin/python -m scripts.serve --model-repository model_repository --pid-file "$pid_file" \
        --http-port "$port" --grpc-port $((port + 1)) --metrics-port $((port + 2)) >"$log" 2>&1 </dev/null &
    local launcher=$! begun=$SECONDS
    until ready; do
        kill -0 "$launcher" 2>/dev/null || { echo "the server did not start:" >&2; tail -n 20 "$log" >&2; exit 1; }
        [ -t 1 ] && printf '\rloading the models … %d s' $((SECONDS - begun))
        sleep 0.5
    done
    [ -t 1 ] && printf '\r'
    echo "server ready after $((SECONDS - begun)) s"
}

case "${1:-}" in
    --stop) stop; exit ;;
    --help | -h) usage ;;
    "") usage 2 >&2 ;;
esac
scripts/setup.sh embedded
running && ready || start
text=$1
shift
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
python=$PWD/.venv/bin/python
cd "$called_from"
exec "$python" -m client speak "$text" --server "localhost:$((port + 1))" --out speech.wav "$@"
