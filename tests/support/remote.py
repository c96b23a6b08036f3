"""Ways to an engine as if it were on another machine: TLS with two certificates, and ssh."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.second_engine import until

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.support.second_engine import Machine

KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
TLS_PORT = 2376
SSHD = shutil.which("sshd", path=f"{Path(sys.executable).parent}:/usr/sbin")
SSHD_NEEDS = "sshd, which scripts/setup.sh --dev fetches"

SSHD_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/logins
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PidFile {folder}/sshd.pid
"""

SSH_CONFIG = """\
Host 127.0.0.1
    IdentityFile {folder}/user
    IdentitiesOnly yes
    UserKnownHostsFile {folder}/known
    GlobalKnownHostsFile /dev/null
"""

RELAY = """
import socket, sys, threading
near = socket.socket(fileno=int(sys.argv[1]))
def copy(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        source.close(), target.close()
while True:
    client = near.accept()[0]
    engine = socket.create_connection(("127.0.0.1", int(sys.argv[2])))
    for way in ((client, engine), (engine, client)):
        threading.Thread(target=copy, args=way, daemon=True).start()
"""
"""It listens here, and connects where it runs."""

OWN_SYSTEM = """
touch {folder}/engine && mount --bind /var/run/docker.sock {folder}/engine || exit
mount -t tmpfs run /run && mkdir /run/sshd && touch /run/docker.sock || exit
mount --bind {folder}/engine /run/docker.sock || exit
mount --bind {folder}/passwd /etc/passwd || exit
exec {sshd} -D -e -f {folder}/sshd_config
"""
"""It insists on a user and a directory of its own, which this machine need not have."""


def certify(folder: Path, name: str, *more: str, signer: Path | None = None) -> None:
    """Makes ``cert.pem`` and ``key.pem``, signed by what is in `signer`, and its ``ca.pem``."""
    folder.mkdir(exist_ok=True)
    request = ["openssl", "req", "-x509", *KEY, "-subj", f"/CN={name}", *more]
    if signer is not None:
        request += ["-CA", str(signer / "cert.pem"), "-CAkey", str(signer / "key.pem")]
        shutil.copy(signer / "cert.pem", folder / "ca.pem")
    output = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run([*request, *output], check=True, capture_output=True)


@contextmanager
def reached(machine: Machine, port: int) -> Generator[int, None, None]:
    """A port of our loopback that leads to one of that machine's, for the length of the block."""
    with socket.create_server(("127.0.0.1", 0)) as near:
        there = [*machine.network, sys.executable, "-c", RELAY, str(near.fileno()), str(port)]
        with subprocess.Popen(there, pass_fds=[near.fileno()]) as relay:
            try:
                yield near.getsockname()[1]
            finally:
                relay.kill()


@dataclass
class Sshd:
    """A server of ssh on the loopback; `programs` has an ssh that knows it and has a key."""

    port: int
    programs: Path
    process: subprocess.Popen[bytes]
    log: Path

    def logins(self) -> int:
        """How many came in."""
        return self.log.read_text().count("Accepted publickey")


@contextmanager
def sshd(folder: Path, port: int) -> Generator[Sshd, None, None]:
    """As root, since it is root who logs in; nothing of this machine's own ssh is touched."""
    assert SSHD is not None
    folder.chmod(0o755)
    for name in ("host", "user"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    public = (folder / "user.pub").read_text()
    (folder / "logins").write_text(f'restrict,port-forwarding,command="cat" {public}')
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    users = Path("/etc/passwd").read_text().splitlines()
    own = [user for user in users if not user.startswith("sshd:")]
    (folder / "passwd").write_text("\n".join([*own, "sshd:x:65533:65534::/run/sshd:/bin/false\n"]))
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder, port=port))
    (folder / "ssh_config").write_text(SSH_CONFIG.format(folder=folder))
    programs = folder / "programs"
    programs.mkdir()
    ours = f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/ssh_config "$@"\n'
    (programs / "ssh").write_text(ours)
    (programs / "ssh").chmod(0o755)
    log = folder / "sshd.log"
    script = OWN_SYSTEM.format(folder=folder, sshd=SSHD)
    with log.open("wb") as errors:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", script],
            stderr=errors,
            env={**os.environ, "LD_LIBRARY_PATH": str(Path(SSHD).parent)},
        )
    try:
        until(lambda: "Server listening" in log.read_text(), "an ssh server")
        yield Sshd(port, programs, process, log)
    finally:
        process.terminate()
        process.wait()
