#!/usr/bin/env bash
# Resolve the dependencies of pyproject.toml and write requirements/*.txt, with the hashes of all files of each version.
# Needs uv and network access. uv keeps hashes that a file already has: those of CPU torch for all Pythons are entered
# once by hand if torch comes from a folder that has one wheel only.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/uv_sources.sh
uv_version=0.13.8
compile() { # <lock file> <options>
    uv pip compile --quiet --generate-hashes --only-binary :all: --no-header --no-annotate --output-file "requirements/$1.txt" "${@:2}"
}
embedded() {
    compile "$@" --overrides requirements/overrides.txt --python-version 3.11 --python-platform x86_64-manylinux_2_35 pyproject.toml
}
mkdir -p requirements
embedded embedded --extra embedded
embedded dev --extra embedded --extra dev --extra train --constraint requirements/embedded.txt
embedded ray --extra ray --constraint requirements/embedded.txt
embedded docs --extra docs --constraint requirements/dev.txt
compile uv --python-version 3.11 - <<<"uv==$uv_version"
# The image for GPUs. Its published base has Python 3.12, Debian's base in scripts/image.py 3.11; both install this lock,
# also on aarch64.
unset UV_TORCH_BACKEND UV_FIND_LINKS # CUDA builds here
compile gpu --extra gpu --overrides requirements/overrides_gpu.txt --python-version 3.11 --python-platform x86_64-manylinux_2_35 pyproject.toml
