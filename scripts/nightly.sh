#!/usr/bin/env bash
# By night: 5,200 random histories, others each time, with hypothesis profile $HISTORIES (tests/engine/test_histories.py).
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # without bytecode every start of vLLM takes 10 s longer
scripts/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH" HISTORIES="${HISTORIES:-nightly}"
exec python -m pytest tests/engine/test_histories.py "$@"
