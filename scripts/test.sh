#!/usr/bin/env bash
# Sets up .venv and runs everything that must hold: lint, types and the whole test suite, a real server included.
# scripts/test.sh --fast              lint and what needs neither a server nor a large engine: three minutes
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
        exec python -m pytest "${workers[@]}" -m "not server and not engine and not slow and not nightly" "$@"
        ;;
    "")
        ruff check .
        ruff format --check .
        mypy
        exec python -m pytest "${workers[@]}" -m "not nightly" --durations=15
        ;;
esac
exec python -m pytest --durations=15 "$@"
