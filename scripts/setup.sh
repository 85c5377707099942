#!/usr/bin/env bash
# scripts/setup.sh [embedded|docs|dev]   (default: embedded)
# Create .venv from a lock file in requirements/ and install this package into it. `embedded` installs the server's
# dependencies, `docs` only those of the documentation site, and `dev` both, together with those for tests and training.
# The script can be interrupted and run again. It does nothing if the environment is complete.
set -euo pipefail
cd "$(dirname "$0")/.."
set_name=${1:-embedded}
lock=requirements/$set_name.txt
[ -f "$lock" ] || { echo "setup: lock file not found: $lock" >&2; exit 2; }

fail() { echo "setup: $*" >&2; exit 1; }

# A set counts as installed if its stamp, or the stamp of a larger set, matches the current lock files.
key=$(cat requirements/*.txt | sha256sum | cut -c1-16)
package_stamp=.venv/.stretto-package-$(cat pyproject.toml setup.py plugins/*/pyproject.toml | sha256sum | cut -c1-16)
is_installed() {
    have_packages=
    for done_set in "$set_name" dev; do # dev contains all of them
        [ -f ".venv/.stretto-$done_set-$key" ] && have_packages=1
    done
    [ -n "$have_packages" ] && [ -f "$package_stamp" ]
}
rm -rf stretto.egg-info # of a wheel that was built here; Python would prefer its entry points to the installed ones
is_installed && exit
[ -w . ] || fail "cannot write into $PWD: clone into a writable folder"
mkdir -p .stretto
exec 8>.stretto/setup.lock
flock --nonblock 8 || { echo "setup: waiting for another setup in this folder"; flock 8; }
is_installed && exit

candidates=${PYTHON:-python3.11 python3.12 python3}
PYTHON=
for candidate in $candidates; do
    command -v "$candidate" >/dev/null || continue
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || continue
    PYTHON=$candidate && break
done
[ -n "$PYTHON" ] || fail "needs Python 3.11 or 3.12 on the PATH (or in \$PYTHON)"
[ "$(uname -m)" = x86_64 ] || fail "the embedded environment is for x86_64, this is $(uname -m); use the Dockerfile"

# Triton's stubs support only ASCII paths, and their libraries resolve links, so the real path of .venv must be ASCII.
is_ascii() { [ -z "$(LC_ALL=C tr -d '\000-\177' <<<"$1")" ]; }
if ! is_ascii "$PWD" && [ ! -e .venv ]; then
    place=${XDG_CACHE_HOME:-$HOME/.cache}/stretto/venv-$(sha256sum <<<"$PWD" | cut -c1-16)
    is_ascii "$place" || fail "no folder for .venv: neither $PWD nor $place is ASCII; set XDG_CACHE_HOME to one that is"
    echo "setup: .venv is a link to $place, because the path of this folder is not ASCII"
    mkdir -p "$place"
    ln -sfn "$place" .venv
fi
if [ ! -x .venv/bin/uv ]; then
    echo "setup: making .venv with $("$PYTHON" --version)"
    "$PYTHON" -m venv "$(realpath .venv)" || fail "no venv module: on Debian or Ubuntu, apt-get install python3-venv"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r requirements/uv.txt ||
        fail "could not download uv; check the network and run this again"
fi
if [ -z "$have_packages" ]; then
    . scripts/uv_sources.sh
    if [ -n "${UV_TORCH_BACKEND:-}" ]; then
        echo "setup: CPU torch comes from PyTorch's own index"
    else
        echo "setup: CPU torch comes from $UV_FIND_LINKS"
    fi
    echo "setup: installing $(grep -c '==' "$lock") packages of $lock (up to 3.5 GB unpacked; cached packages are not downloaded again)"
    export UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-180} UV_LINK_MODE=${UV_LINK_MODE:-hardlink}
    .venv/bin/uv pip install --python .venv/bin/python --no-deps --require-hashes --no-build -r "$lock" ||
        fail "a download failed or has another hash than in $lock (see above); run this again to continue"
    find .venv/ -maxdepth 1 -name '.stretto-*' ! -name '.stretto-package-*' ! -name "*-$key" -delete # of other lock files
    touch ".venv/.stretto-$set_name-$key"
fi
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation --editable . || fail "could not install this package"
rm -f .venv/.stretto-package-* # of other entry points
touch "$package_stamp"
echo "setup: ready"
