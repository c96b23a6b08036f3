#!/usr/bin/env bash
# Every check: format, lint, types, tests. All are run even if one fails; the exit code says whether any did.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CHECK_LIMIT=300 # seconds for a single static check
TEST_LIMIT=2700 # seconds for all tests; a single one has its own limit in pyproject.toml

source scripts/setup.sh --dev
PATH="$PWD/$(venv_bin):$PATH"

output=$(mktemp) # of the latest check
trap 'rm -f "$output"' EXIT
failed=0
results=()
check() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 started=$SECONDS status=0
    shift 2
    printf '\n==> %s\n' "$name"
    bounded "$limit" "$@" 2>&1 | tee "$output" || status=$?
    case $status in
    0) results+=("$name: passed in $((SECONDS - started)) s") ;;
    124 | 137) results+=("$name: TIMED OUT after $limit s") ;;
    *) results+=("$name: FAILED with status $status") ;;
    esac
    if [ "$status" != 0 ]; then failed=1; fi
}

# macOS has no `timeout` of its own: there only the limit per test holds.
bounded() { # SECONDS COMMAND...
    if command -v timeout >/dev/null; then timeout --kill-after=20 "$@"; else "${@:2}"; fi
}

check format "$CHECK_LIMIT" ruff format --check .
check lint "$CHECK_LIMIT" ruff check .
check types "$CHECK_LIMIT" basedpyright
# They wait most of the time: two workers; tests/support/workers.py says what runs beside what.
check tests "$TEST_LIMIT" pytest --numprocesses=2 --durations=25 "$@"

printf '\n==> summary\n'
printf '%s\n' "${results[@]}"
tail -n 1 "$output"
exit "$failed"
