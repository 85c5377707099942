#!/usr/bin/env bash
# scripts/soak.sh --minutes 60 [flags of benchmarks.chaos]
# Every kind of request from many clients for so many minutes, then every process of the server killed and stopped, memory
# and disk filled and the clock moved under the same load: is every answer right, or an error? benchmarks/results/chaos.md
# Shared memory and a disk of this run's own, small enough to be filled, need a user namespace; without one both are left
# out, by name. The clock is moved for the server alone, where there is a C compiler (benchmarks/chaos/clock.c).
set -euo pipefail
cd "$(dirname "$0")/.."
python=$PWD/.venv/bin/python
[ -x "$python" ] || { echo "soak: there is no .venv; run scripts/setup.sh dev first" >&2; exit 3; }
unset PYTHONDONTWRITEBYTECODE # without bytecode every start of vLLM takes 10 s longer
export PATH="$PWD/.venv/bin:$PATH" # a server takes its tools from there

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
    echo "soak: no user namespace: shared memory and the disk are not filled" >&2
    "$python" -m benchmarks.chaos --faults stop front-end kill clock "$@" &
fi
child=$!
trap 'kill -TERM "$child" 2>/dev/null || true' TERM INT
status=0
wait "$child" || status=$?
exit "$status"
