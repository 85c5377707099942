#!/usr/bin/env bash
# scripts/speak.sh "text" [options]   sets up .venv if needed, then runs `stretto speak`, which writes speech.wav
# scripts/speak.sh --stop             stops the server that it started (`stretto serve --stop`)
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
