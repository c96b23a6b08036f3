"""A harness's program brought into a box that has none, by the box's own npm.

What a package holds is unpacked beside its final place and moved there whole, under a lock: two
installations at once do the work once, and one that is cut short leaves nothing that runs.
"""

from __future__ import annotations

import math
import shlex

import anyio

from box_mcp.capabilities.shell import OnOutput, Outcome, Shell, unheard
from box_mcp.errors import HarnessMissing

TIMEOUT = 600.0  # s; 167 MB took 10 s, and a slow line is no reason to have nothing
LOOK = 15.0  # s between two looks at an installation that goes on
MAX_OUTPUT = 4000  # bytes of what it printed
REASON = 600  # characters of what npm said, from its end

NO_NPM, NO_MACHINE, NO_PLACE, NOT_FETCHED, NOT_UNPACKED, NOT_RUNNING = range(71, 77)

INSTALL = f"""
set -u
program=$1 version=$2
fail() {{ code=$1; shift; echo "$*" >&2; exit "$code"; }}

command -v npm >/dev/null || fail {NO_NPM} "the image has no npm"
if [ -z "${{https_proxy:-}}${{HTTPS_PROXY:-}}" ] && [ -r /proc/net/route ]; then
    # A route a line, below one of titles.
    [ "$(wc -l </proc/net/route)" -gt 1 ] || fail {NOT_FETCHED} "the box has no network"
fi
case $(uname -m) in
    x86_64) arch=x64 ;;
    aarch64|arm64) arch=arm64 ;;
    *) fail {NO_MACHINE} "there is none for $(uname -m)" ;;
esac
package=$(echo "$3" | sed "s/{{version}}/$version/; s/{{arch}}/$arch/")

bin=
for at in "$HOME/.local/bin" $(echo "$PATH" | tr : ' '); do
    case :$PATH: in *:"$at":*) ;; *) continue ;; esac
    if mkdir -p "$at" 2>/dev/null && [ -w "$at" ]; then bin=$at; break; fi
done
[ -n "$bin" ] || fail {NO_PLACE} "$(id -un) may write to no directory of PATH ($PATH)"

place=$HOME/.local/lib/agents
home=$place/$program-$version
mkdir -p "$place" || fail {NOT_UNPACKED} "$place can't be made"
exec 9>"$place/.lock"
if command -v flock >/dev/null; then flock 9; rm -rf "$place"/.new-*; fi

if [ ! -d "$home" ]; then
    new=$(mktemp -d "$place/.new-XXXXXX") && cd "$new" || fail {NOT_UNPACKED} "no new directory"
    trap 'cd /; rm -rf "$new"' EXIT
    export npm_config_cache="$new/cache" npm_config_loglevel=error npm_config_update_notifier=false
    export npm_config_fetch_retries=1 npm_config_fetch_retry_mintimeout=1000
    echo "installs $program $version: npm looks for it"
    npm pack "$package" >name 9>&- &
    npm=$!
    while sleep 1; kill -0 "$npm" 2>/dev/null; do
        echo "installs $program $version: $(du -sm . | cut -f1) MB fetched"
    done
    wait "$npm" || exit {NOT_FETCHED}
    rm -rf cache
    echo "installs $program $version: unpacks it"
    mkdir fresh
    tar -xzf "$(cat name)" -C fresh --strip-components=1 --no-same-owner || exit {NOT_UNPACKED}
    found=$(find fresh -type f -name "$program" | head -n 1)
    [ -n "$found" ] || fail {NOT_UNPACKED} "$package holds no $program"
    chmod 0755 "$found"
    "./$found" --version >/dev/null || fail {NOT_RUNNING} ""
    mv -T fresh "$home" || [ -d "$home" ] || exit {NOT_UNPACKED}
fi
found=$(find "$home" -type f -name "$program" | head -n 1)
ln -s "$found" "$place/.link-$$" && mv -f "$place/.link-$$" "$bin/$program"
"""
"""Takes program, version and package; prints how it goes, and to stderr why it fails."""

_ADVICE = {
    NOT_FETCHED: (
        "Let the box reach npm's registry (`network_policy`), or make a box of an image that has "
        "it (`box-mcp image build`)"
    ),
    NOT_RUNNING: "Make a box of the standard image (`box-mcp image build`)",
}
_NO_SPACE = ("ENOSPC", "No space left on device")
_MAKE_SPACE = "Delete what the box needs no more: it takes 1 GB while it is installed"


async def install(
    shell: Shell,
    program: str,
    package: str,
    version: str,
    on_output: OnOutput = unheard,
    until: float = math.inf,
) -> None:
    """Has the program of a `Harness` on the PATH of the box's user; raises HarnessMissing.

    Who is cancelled, or waits no longer than `until` (on the clock of anyio), only stops to look
    on: the installation goes on, and who wants it next goes on to look.
    """
    if not package:
        raise HarnessMissing(shell.box, program, "it is not installed")
    title = f"installs {program} {version}"
    listing = await shell.processes()
    under_way = [one.id for one in listing.runs if one.running and one.command == title]
    process = under_way[0] if under_way else await _begin(shell, title, program, package, version)
    running = True
    while running:
        left = until - anyio.current_time()
        page, _ = await shell.output(
            process,
            limit=MAX_OUTPUT,
            wait=min(LOOK, max(0.0, left)),
            until="exit",
            on_output=on_output,
        )
        running = page.running
        if running and left <= 0:
            advice = "Repeat the call after a while: it goes on meanwhile"
            raise HarnessMissing(shell.box, program, "it is being installed", advice)
    outcome = await shell.outcome(process, MAX_OUTPUT)
    if outcome.record.exit != 0:
        raise _failure(shell.box, program, outcome)


async def _begin(shell: Shell, title: str, program: str, package: str, version: str) -> str:
    """The process that installs it."""
    started = await shell.run(
        shlex.join(["sh", "-c", INSTALL, "install", program, version, package]),
        title=title,
        cwd="/",
        visits=True,
        timeout=TIMEOUT,
        yield_after=0,
        background=True,
        max_output=MAX_OUTPUT,
    )
    return started.record.id


def _failure(box: str, program: str, outcome: Outcome) -> HarnessMissing:
    record = outcome.record
    said = (outcome.head + outcome.tail).decode(errors="replace")
    if record.cause == "timeout":
        detail = f"installing it took more than {TIMEOUT:.0f} s"
        return HarnessMissing(box, program, detail, _ADVICE[NOT_FETCHED])
    why = " ".join(_words(said, program))[-REASON:] or f"exit {record.exit}, {record.cause}"
    advice = _ADVICE.get(record.exit or 0, "")
    if any(word in said for word in _NO_SPACE):
        advice = _MAKE_SPACE
    return HarnessMissing(box, program, f"it could not be installed: {why}", advice)


def _words(said: str, program: str) -> list[str]:
    """The lines that tell why it failed: not how it went, nor where npm's log is."""
    lines = [line.replace("npm ERR! ", "").strip() for line in said.splitlines()]
    noise = (f"installs {program}", "A complete log of this run", "/")
    return [line for line in lines if line and not line.startswith(noise)]
