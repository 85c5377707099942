#!/usr/bin/env bash
# scripts/soak.sh --minutes 60 [flags of benchmarks.chaos]
# Send all kinds of requests from many clients for the given number of minutes. Then inject faults under the same load:
# kill and stop each process of the server, fill memory and disk, and move the clock. Check that every answer is correct
# or an error, print what is wrong, and append a line to benchmarks/results/chaos.jsonl.
# To fill memory and disk safely, this run needs a small /dev/shm and disk of its own, and therefore a user namespace.
# Without one, both faults are skipped with a message. The clock moves only for the server, and only if there is a C
# compiler (benchmarks/chaos/clock.c).
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
[ -x "$python" ] || { echo "soak: no .venv found; run scripts/setup.sh dev first" >&2; exit 3; }
unset PYTHONDONTWRITEBYTECODE # without bytecode every start of vLLM takes 10 s longer
export PATH="$PWD/.venv/bin:$PATH" # the server finds its programs there

if [ "${1:-}" = --in-namespace ]; then
    shift
    folder=$1
    shift
    mount -t tmpfs -o size=1g tmpfs /dev/shm
    mount -t tmpfs -o size=64m tmpfs "$folder"
    exec "$python" -m benchmarks.chaos --folder "$folder" "$@"
fi
folder=$(mktemp -d)
trap 'rmdir "$folder"' EXIT
own=(unshare --user --map-root-user --mount)
if "${own[@]}" true 2>/dev/null; then
    "${own[@]}" "$0" --in-namespace "$folder" "$@" &
else
    echo "soak: no user namespace, so shared memory and disk are not filled" >&2
    "$python" -m benchmarks.chaos --faults stop front-end kill clock "$@" &
fi
child=$!
trap 'kill -TERM "$child" 2>/dev/null || true' TERM INT
status=0
wait "$child" || status=$?
exit "$status"
