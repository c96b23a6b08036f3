#!/usr/bin/env bash
# Makes this checkout ready to run: .venv with pinned packages, a container engine that answers, the box image.
# Run again, it only checks (about a second). It asks nothing and changes nothing that is already there.
#
#   bash scripts/setup.sh            what running needs
#   bash scripts/setup.sh --dev      and what testing needs
#
# quickstart.sh and test.sh source it: afterwards they stand at the top of the repository with the environment set.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ENGINE_LOG=/var/log/dockerd.log
ENGINE_PID=/var/run/docker.pid
ENGINE_SOCKET=/var/run/docker.sock
ENGINE_WAIT=60 # seconds that a fresh engine may take until it answers

requirements=requirements.txt
test_tools=()
if [ "${1:-}" = --dev ]; then
    requirements="requirements-dev.txt"
    test_tools=(
        crun # a second OCI runtime
    )
fi

say() { printf '==> %s\n' "$*"; }
fail() {
    printf '\nsetup: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '  %s\n' "$@" >&2
    exit 1
}

# --- becoming root, without ever asking for a password

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}
can_be_root() {
    [ "$(id -u)" = 0 ] || { command -v sudo && sudo -n true; } >/dev/null 2>&1
}
can_install() {
    command -v apt-get >/dev/null 2>&1 && can_be_root
}
apt_install() {
    say "installing $* (apt)"
    as_root apt-get update -q >/dev/null
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >/dev/null
}

# --- Python

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3}" python3.13 python3.12 python3.11 /usr/bin/python3; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or newer is needed; this machine's python3 is $(python3 --version 2>&1 || true)." \
        "Install it (Debian 12, Ubuntu 24.04 and newer: apt-get install python3 python3-venv; macOS: brew install python)" \
        "or name one: PYTHON=/path/to/python3.12 bash scripts/setup.sh"
}

# A Windows environment has its programs in Scripts.
venv_bin() { if [ -d .venv/Scripts ]; then echo .venv/Scripts; else echo .venv/bin; fi; }

make_venv() {
    local python
    python=$(find_python)
    say "making .venv with $("$python" --version)"
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        can_install || fail "$python can't make virtual environments." "Debian, Ubuntu: sudo apt-get install python3-venv"
        apt_install python3-venv
    fi
    "$python" -m venv --clear .venv
}

stamp_of() { echo "$1 $(cat pyproject.toml "$1" | cksum) $PWD"; }
has_installed() { [ "$(cat .venv/box-mcp-stamp 2>/dev/null)" = "$(stamp_of "$1")" ]; }

python_packages() {
    if ! is_new_enough "$(venv_bin)/python"; then
        make_venv
    elif has_installed requirements-dev.txt || has_installed "$requirements"; then
        # What testing needs includes what running needs.
        say "Python packages are current"
        return
    fi
    say "installing $requirements"
    venv_pip --require-hashes -r "$requirements"
    # The build backend is among the requirements: nothing more is fetched for it.
    venv_pip --no-deps --no-build-isolation -e .
    stamp_of "$requirements" >.venv/box-mcp-stamp
}
venv_pip() { "$(venv_bin)/python" -m pip install --quiet --disable-pip-version-check "$@"; }

# --- the container engine

engine_answers() {
    "$(venv_bin)/python" - <<'PYTHON' >/dev/null 2>&1
import docker
docker.from_env(timeout=5).ping()
PYTHON
}

# A killed engine leaves its pid file behind; while that number is some other program's, a new one won't start.
clear_stale_pid() {
    local pid
    pid=$(cat "$ENGINE_PID" 2>/dev/null) || return 0
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != dockerd ]; then
        say "removing the pid file of an engine that is gone ($pid)"
        as_root rm -f "$ENGINE_PID"
    fi
}

engine_is_running() {
    local pid
    pid=$(cat "$ENGINE_PID" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = dockerd ]
}

wait_for_engine() {
    local waited=0
    until engine_answers; do
        check_permission
        waited=$((waited + 1))
        if [ "$waited" -gt "$ENGINE_WAIT" ]; then return 1; fi
        # An engine that has ended by itself won't answer later either.
        if [ "$waited" -gt 5 ] && ! engine_is_running; then return 1; fi
        sleep 1
    done
}

check_permission() {
    if engine_is_running && [ -S "$ENGINE_SOCKET" ] && [ ! -w "$ENGINE_SOCKET" ]; then
        fail "Docker is running, but $(id -un) may not use it." \
            "sudo usermod -aG docker $(id -un)   then log out and in again, or ask your administrator to do it."
    fi
}

start_engine() {
    if [ -d /run/systemd/system ]; then
        say "starting the engine (systemd)"
        as_root systemctl start docker || true
        wait_for_engine ||
            fail "Docker does not start: $(as_root systemctl is-active docker || true)" "See: journalctl -u docker"
        return
    fi
    clear_stale_pid
    if ! engine_is_running; then
        say "starting the engine in the background (log: $ENGINE_LOG)"
        as_root sh -c "setsid nohup dockerd >>$ENGINE_LOG 2>&1 </dev/null &"
    fi
    if ! wait_for_engine; then
        echo "--- the end of $ENGINE_LOG:" >&2
        as_root tail -n 15 "$ENGINE_LOG" >&2 || true
        fail "Docker's engine did not come up." \
            "The lines above say why. Common: no cgroups or no privilege to make networks (this machine is itself a" \
            "container that may not run containers), or a full disk."
    fi
}

engine() {
    if engine_answers; then
        say "the container engine answers"
        return
    fi
    if [ -n "${DOCKER_HOST:-}" ]; then
        fail "No engine answers at DOCKER_HOST=$DOCKER_HOST." "Start it there, or unset DOCKER_HOST to use this machine's."
    fi
    case $(uname -s) in
    Darwin | MINGW* | MSYS* | CYGWIN*)
        fail "No container engine answers." \
            "Install and open Docker Desktop (or start another engine that offers Docker's API), then run this again."
        ;;
    esac
    check_permission
    if command -v dockerd >/dev/null 2>&1 && can_be_root; then
        start_engine
    elif can_install; then
        apt_install docker.io iptables
        start_engine
    else
        no_engine
    fi
}

no_engine() {
    local how
    if command -v apt-get >/dev/null 2>&1; then
        how="sudo apt-get install docker.io iptables"
    elif command -v dnf >/dev/null 2>&1; then
        how="sudo dnf install moby-engine && sudo systemctl enable --now docker"
    elif command -v pacman >/dev/null 2>&1; then
        how="sudo pacman -S docker && sudo systemctl enable --now docker"
    elif command -v zypper >/dev/null 2>&1; then
        how="sudo zypper install docker && sudo systemctl enable --now docker"
    else
        how="install Docker's engine with this system's package manager and start it"
    fi
    fail "No container engine answers, and setup can't install one here without a password." "$how" \
        "sudo usermod -aG docker $(id -un)   then log out and in again" \
        "Without sudo: ask your administrator for both, or set DOCKER_HOST to an engine elsewhere."
}

# --- programs that tests use; those that need one which is not there are skipped, and say so

tools() {
    local tool missing=()
    for tool in ${test_tools[@]+"${test_tools[@]}"}; do
        command -v "$tool" >/dev/null 2>&1 || missing+=("$tool")
    done
    if [ ${#missing[@]} -gt 0 ] && can_install; then apt_install "${missing[@]}"; fi
    if [ ${#test_tools[@]} -gt 0 ] && can_install; then
        [ -x "$(venv_bin)/docker-registry" ] || program docker-registry usr/bin/docker-registry
        [ -x "$(venv_bin)/sshd" ] || program openssh-server usr/sbin/sshd libwrap0
    fi
}

# A program alone: Debian's package would also run it as a service. Libraries of further packages lie beside it.
program() { # PACKAGE PATH [PACKAGE...]
    local scratch
    scratch=$(mktemp -d)
    say "fetching ${2##*/} (apt)"
    (
        cd "$scratch"
        as_root apt-get update -q >/dev/null
        apt-get download -q "$1" "${@:3}" >/dev/null 2>&1
        for package in *.deb; do dpkg-deb -x "$package" .; done
    )
    install "$scratch/$2" "$(venv_bin)/"
    [ $# -eq 2 ] || install "$scratch"/usr/lib/*/lib*.so.? "$(venv_bin)/"
    rm -rf "$scratch"
}

# --- the box image, and the one without coding agents

python_packages
engine
tools
"$(venv_bin)/box-mcp" image build
