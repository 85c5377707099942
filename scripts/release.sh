#!/usr/bin/env bash
# scripts/release.sh [OUT]   (default: dist)
# Build a release: wheel and source distribution (built twice and compared byte by byte), sbom.cdx.json (CycloneDX) of
# the serving environment, licences.md generated from it, and SHA256SUMS. Needs uv and network access.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/uv_sources.sh
out=$(realpath -m "${1:-dist}")
tool=cyclonedx-bom==7.1.0
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH PYTHONPATH=$PWD
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python=$(command -v .venv/bin/python || command -v python3)

build() { # <folder>; builds from the commit, so that uncommitted files are left out
    mkdir -p "$scratch/$1/tree" "$scratch/$1/made"
    git archive HEAD | tar -x -C "$scratch/$1/tree"
    uv build --quiet --sdist --out-dir "$scratch/$1/made" "$scratch/$1/tree"
    "$python" -m scripts.same_bytes "$scratch/$1"/made/*.tar.gz
    mkdir "$scratch/$1/unpacked"
    tar -x -C "$scratch/$1/unpacked" -f "$(echo "$scratch/$1"/made/*.tar.gz)"
    uv build --quiet --wheel --out-dir "$scratch/$1/made" "$scratch/$1"/unpacked/*
    rm -f "$scratch/$1/made/.gitignore"
}
build first
build second
diff -r "$scratch/first/made" "$scratch/second/made" || { echo "release: two builds of the same commit differ" >&2; exit 1; }

uv venv --quiet --python "$python" "$scratch/env"
uv pip install --quiet --python "$scratch/env/bin/python" --no-deps --require-hashes --no-build -r requirements/embedded.txt
uv venv --quiet --python "$python" "$scratch/tool"
uv pip install --quiet --python "$scratch/tool/bin/python" "$tool"
"$scratch/tool/bin/cyclonedx-py" environment --output-reproducible --pyproject pyproject.toml \
    --output-file "$scratch/sbom.cdx.json" "$scratch/env/bin/python"
mkdir -p "$out"
cp "$scratch"/first/made/* "$scratch/sbom.cdx.json" "$out"
status=0
"$python" -m scripts.licences "$out/sbom.cdx.json" "$out/licences.md" || status=$?
(cd "$out" && sha256sum ./*.whl ./*.tar.gz sbom.cdx.json licences.md >SHA256SUMS)
cat "$out/SHA256SUMS"
exit "$status"
