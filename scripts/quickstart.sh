#!/usr/bin/env bash
# From a fresh checkout to a box at work: sets up what is missing, then shows a box being used.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

phase() { # NAME COMMAND...
    local phase_name=$1 phase_start=$SECONDS
    shift
    "$@"
    printf -- '--- %s took %d s\n\n' "$phase_name" "$((SECONDS - phase_start))"
}

phase setup source scripts/setup.sh
phase demo "$(venv_bin)/box-mcp" demo
