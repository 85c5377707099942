#!/usr/bin/env bash
# Checks and measures the engine on a GPU host in under nine minutes; `--dry-run` walks the same paths on a CPU, tiny.
# Results are JSON lines under --out (default: gpu_check). With a bundle, set PYTHONPATH as its installation printed.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
