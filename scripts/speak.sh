#!/usr/bin/env bash
# scripts/speak.sh "text" [client options]   speaks the text: sets up .venv and starts the server where needed
# scripts/speak.sh --stop                    stops the server that it started
# The server stays up for the next call. STRETTO_PORT (default 8000) is its HTTP port; gRPC is the next, metrics the one after.
set -euo pipefail
called_from=$PWD
cd "$(dirname "$0")/.."
trap 'exit 130' INT # also when Ctrl-C comes as a program it calls is about to end well
unset PYTHONDONTWRITEBYTECODE # without bytecode every start of vLLM takes 10 s longer
port=${STRETTO_PORT:-8000}
state=.stretto
pid_file=$state/server-$port.pid
log=$state/server-$port.log

usage() { sed -n '2,4s/^# //p' "$0"; exit "${1:-0}"; }
serve() { .venv/bin/python -m stretto.serving.command --pid-file "$pid_file" "$@"; }

launch() {
    echo "starting the server on ports $port (HTTP), $((port + 1)) (gRPC), $((port + 2)) (metrics); log: $log"
    # A session of its own: what ends this call must not end the server. Nor may the server keep the lock.
    setsid nohup .venv/bin/python -m stretto.serving.command --pid-file "$pid_file" --model-repository model_repository --log-file "$log" \
        --http-port "$port" --grpc-port $((port + 1)) --metrics-port $((port + 2)) >"$state/serve-$port.log" 2>&1 </dev/null 9>&- &
    launcher=$!
}

# Returns when the server is ready: one that runs, one that an interrupted call has left starting, or one started here.
until_ready() {
    local launcher="" begun=$SECONDS status
    while status=0; serve --status >/dev/null || status=$?; [ "$status" != 0 ]; do
        if [ "$status" = 3 ] && [ -z "$launcher" ]; then
            launch
        elif [ "$status" = 3 ] && ! kill -0 "$launcher" 2>/dev/null; then
            echo "the server did not start:" >&2
            cat "$state/serve-$port.log" >&2
            exit 1
        fi
        [ -t 1 ] && printf '\rloading the models … %d s' $((SECONDS - begun))
        sleep 0.3
    done
    [ -t 1 ] && printf '\r'
    [ -z "$launcher" ] || echo "server ready after $((SECONDS - begun)) s"
}

case "${1:-}" in
    --stop) [ -x .venv/bin/python ] && serve --stop; exit ;;
    --help | -h) usage ;;
    "") usage 2 >&2 ;;
esac
scripts/setup.sh embedded
if ! serve --status >/dev/null; then
    mkdir -p "$state"
    exec 9>"$state/start-$port.lock"
    flock --nonblock 9 || { echo "another call is starting the server: waiting for it"; flock 9; }
    until_ready
    exec 9>&-
fi
text=$1
shift
python=$PWD/.venv/bin/python
cd "$called_from"
exec "$python" -m client speak "$text" --server "localhost:$((port + 1))" --out speech.wav "$@"
