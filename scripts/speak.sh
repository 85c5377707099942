#!/usr/bin/env bash
# scripts/speak.sh "text" [options]   sets .venv up where needed, then runs `stretto speak`, which writes speech.wav
# scripts/speak.sh --stop             stops the server that it has started, as `stretto serve --stop` does
set -euo pipefail
clone=$(cd "$(dirname "$0")/.." && pwd)
stretto=$clone/.venv/bin/stretto
case "${1:-}" in
    --stop) [ -x "$stretto" ] || exit 0; exec "$stretto" serve --stop ;;
    --help | -h) exec sed -n '2,3s/^# //p' "$0" ;;
    "") sed -n '2,3s/^# //p' "$0" >&2; exit 2 ;;
esac
"$clone/scripts/setup.sh" embedded
exec "$stretto" speak --out speech.wav "$@"
