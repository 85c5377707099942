#!/usr/bin/env bash
# Sets up .venv and runs everything that must hold: lint, types and the whole test suite, a real server included.
# Arguments go to pytest: scripts/test.sh tests/streams -k delay
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # without bytecode every start of vLLM takes 10 s longer
scripts/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH"
if [ $# -eq 0 ]; then
    ruff check .
    ruff format --check .
    mypy
fi
exec python -m pytest --durations=15 "$@"
