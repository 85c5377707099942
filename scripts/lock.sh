#!/usr/bin/env bash
# Resolve the dependencies of pyproject.toml and write requirements/*.txt. Needs uv and network access.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/uv_sources.sh
compile() {
    uv pip compile --quiet --overrides requirements/overrides.txt --no-header --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_35 pyproject.toml "$@"
}
mkdir -p requirements
compile --extra embedded --output-file requirements/embedded.txt
compile --extra embedded --extra dev --extra train --constraint requirements/embedded.txt --output-file requirements/dev.txt
compile --extra ray --constraint requirements/embedded.txt --output-file requirements/ray.txt
compile --extra docs --constraint requirements/dev.txt --output-file requirements/docs.txt
