#!/usr/bin/env bash
# Writes requirements.txt and requirements-dev.txt: every package pinned, every file hashed, for Python >= 3.11 on
# Linux, macOS and Windows. The build backend is in both, so that installing the project itself fetches nothing more.
#
#   bash scripts/lock.sh             keep the present pins where they still fit
#   bash scripts/lock.sh --upgrade   take the newest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

UV=$(command -v uv || true)
if [ -z "$UV" ]; then
    python3 -m venv .venv/lock
    .venv/lock/bin/pip install --quiet uv
    UV=.venv/lock/bin/uv
fi

# What this machine has configured for its own package sources (find-links, extra indexes) must not reach the files.
unset PIP_FIND_LINKS PIP_EXTRA_INDEX_URL UV_FIND_LINKS UV_EXTRA_INDEX_URL UV_INDEX

lock() { # OUTPUT [uv options]
    local output=$1
    shift
    printf 'hatchling\neditables\n' | "$UV" pip compile pyproject.toml - --quiet --no-config --system-certs \
        --universal --python-version 3.11 --generate-hashes \
        --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
        --output-file "$output" "$@"
    if grep -nE '://|file:|^-|^/| @ ' "$output"; then
        echo "scripts/lock.sh: $output names a place that packages come from (above)" >&2
        exit 1
    fi
    echo "$output: $(grep -c '==' "$output") packages"
}

lock requirements.txt "$@"
lock requirements-dev.txt --extra dev --constraint requirements.txt "$@"
