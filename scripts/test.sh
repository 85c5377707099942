#!/usr/bin/env bash
# Sets up .venv and runs lint, types and the day tier of the tests (tests/README.md), a real server included; the rest
# is for scripts/nightly.sh. The last lines name the files that took longest.
# scripts/test.sh --fast              lint and what needs neither a server nor an engine
# scripts/test.sh tests/streams -k x  arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # without bytecode every start of vLLM takes 10 s longer
scripts/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH"
workers=(-n "${STRETTO_TEST_WORKERS:-2}" --dist loadgroup --no-loadscope-reorder)
case "${1:-}" in
    --fast)
        shift
        ruff check .
        wanted="not server and not engine and not slow and not nightly"
        exec python -m pytest "${workers[@]}" -m "$wanted" "$@"
        ;;
    "")
        ruff check .
        ruff format --check .
        types=$(mktemp)
        nice -n 19 mypy >"$types" 2>&1 & # beside the tests, which leave a part of two cores idle, and told behind them
        checking=$!
        trap 'kill "$checking" 2>/dev/null || true; rm -f "$types"' EXIT
        failed=0
        python -m pytest "${workers[@]}" -m "not nightly" --durations=15 || failed=1
        wait "$checking" || failed=1
        cat "$types"
        exit "$failed"
        ;;
esac
exec python -m pytest --durations=15 "$@"
