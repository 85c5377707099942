#!/usr/bin/env bash
# scripts/test.sh                     sets up .venv; runs lint, type checks and the day tier of the tests (tests/README.md)
# scripts/test.sh --fast              runs lint and short tests: nothing in SLOW_PLACES (conftest.py), no server, engine or slow test
# scripts/test.sh tests/streams -k x  passes its arguments to pytest
# The day tier leaves out the tests of plug-ins that did not change since these passed (scripts/plugins.py), and if all
# tests pass, records those that it ran in plugins/tested.json. It starts a real server. scripts/nightly.sh runs the other tests. The last lines list the slowest tests.
set -euo pipefail
cd "$(dirname "$0")/.."
unset PYTHONDONTWRITEBYTECODE # without bytecode every start of vLLM takes 10 s longer
scripts/setup.sh dev
export PATH="$PWD/.venv/bin:$PATH"
workers=${STRETTO_TEST_WORKERS:-3} # for two cores: engines compute with both
case "${1:-}" in
    --fast)
        shift
        ruff check .
        wanted="not server and not engine and not slow and not nightly"
        # Plug-ins have only long tests, and their conftest.py imports torch.
        workers=${STRETTO_TEST_WORKERS:-5} # short tests often wait
        exec python -m pytest --workers "$workers" -o "testpaths=tests integrations" -m "$wanted" "$@"
        ;;
    "")
        ruff check .
        ruff format --check .
        digests=$(mktemp)
        python -m scripts.plugins digests >"$digests"
        read -ra unchanged < <(python -m scripts.plugins) || true
        [[ ${#unchanged[@]} == 0 ]] || echo "test: plug-ins that did not change, for scripts/nightly.sh: ${unchanged[*]}"
        types=$(mktemp)
        nice -n 19 mypy >"$types" 2>&1 & # in parallel with the tests, which leave part of two cores idle; printed after them
        checking=$!
        trap 'kill "$checking" 2>/dev/null || true; rm -f "$types" "$digests"' EXIT
        failed=0
        python -m pytest --workers "$workers" -m "not nightly" --durations=15 "${unchanged[@]/#/--ignore=plugins/}" || failed=1
        wait "$checking" || failed=1
        cat "$types"
        [[ $failed == 1 ]] || cat "$digests" >plugins/tested.json
        exit "$failed"
        ;;
esac
exec python -m pytest --durations=15 "$@"
