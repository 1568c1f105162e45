"""Hosts of this machine with a network of their own, which can be cut: Linux network namespaces.

Every host is a namespace that a pair of virtual Ethernet devices joins to one bridge; to cut a host
off is to set its device down. It has a name of its own, too: Gloo listens where the name of its
machine leads to. It takes root, or a user namespace (`unshare -Urmn`).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from exajax.job.environment import ADDRESS, HOST_PREFIX, NAMESPACES

HOLD = "echo {name} > /proc/sys/kernel/hostname; echo; exec cat"
"""What lives in the namespace of a host, and keeps it, until its standard input ends."""

TOOLS = ("unshare", "nsenter", "ip", "mount", "umount")


def why_not() -> str | None:
    """Returns why this process cannot have namespaces of its own, None if it can."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)} is not installed"
    tried = subprocess.run(
        [*_unshare(), "ip", "link", "add", "exajax0", "type", "bridge"],
        capture_output=True,
        text=True,
    )
    return tried.stderr.strip().splitlines()[-1] if tried.returncode else None


def enter() -> None:
    """Starts this command again in namespaces of its own, unless it is in them.

    It takes the place of this process, so that signals and exit code stay as they are.
    """
    if NAMESPACES.get():
        _ip("link", "set", "lo", "up")  # a new network has not even that
        return
    sys.stdout.flush()
    sys.stderr.flush()
    argv = [*_unshare(), *sys.orig_argv]
    os.execvpe(argv[0], argv, os.environ | {NAMESPACES.name: "1"})


def _unshare() -> list[str]:
    """Returns what starts a command where it may make mounts and networks."""
    # A private mount namespace: what is mounted there is seen nowhere else, and ends with it.
    flags = ["-mn"] if os.geteuid() == 0 else ["-Urmn"]
    return ["unshare", *flags, "--propagation", "private"]


class Network:
    """A network of hosts, each in a namespace of its own. Use it in a `with`.

    Args:
        hosts: how many.
        folder: where the names of the namespaces go; made if it is not there.
    """

    def __init__(self, hosts: int, folder: Path) -> None:
        self._hosts, self._folder = hosts, folder
        self._holders: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "Network":
        self._folder.mkdir(parents=True, exist_ok=True)
        names = self._folder / "hosts"
        lines = [f"{address_of(host)} {name_of(host)}\n" for host in range(self._hosts)]
        names.write_text("127.0.0.1 localhost\n" + "".join(lines))
        _run(["mount", "--bind", str(names), "/etc/hosts"])
        _ip("link", "add", "exajax0", "type", "bridge")
        _ip("link", "set", "exajax0", "up")
        try:
            for host in range(self._hosts):
                self._join(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host, holder in enumerate(self._holders):
            subprocess.run(["ip", "link", "del", f"host{host}"], capture_output=True)
            holder.kill()
            holder.wait()
        _ip("link", "del", "exajax0")
        _run(["umount", "/etc/hosts"])

    @property
    def environment(self) -> dict[str, str]:
        """What the parent of a local job needs to start every supervisor in its namespace."""
        address = f"{ADDRESS.name}={address_of('{host}')}"
        names = f"--net={self._folder}/{{host}}-net --uts={self._folder}/{{host}}-uts"
        return {HOST_PREFIX.name: f"env {address} nsenter {names}"}

    def cut(self, host: int) -> None:
        """Cuts a host off from all others."""
        _ip("link", "set", f"host{host}", "down")

    def mend(self, host: int) -> None:
        """Joins a host to the others again."""
        _ip("link", "set", f"host{host}", "up")

    def _join(self, host: int) -> None:
        """Makes the namespace of a host. It lasts as long as a process is in it."""
        holder = subprocess.Popen(
            ["unshare", "-nu", "sh", "-c", HOLD.format(name=name_of(host))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._holders.append(holder)
        assert holder.stdout
        holder.stdout.readline()  # from now on it is in the namespace
        for kind in ("net", "uts"):
            link = self._folder / f"{host}-{kind}"
            link.unlink(missing_ok=True)
            link.symlink_to(f"/proc/{holder.pid}/ns/{kind}")
        ends = ["peer", "name", "eth0", "netns", str(holder.pid)]
        _ip("link", "add", f"host{host}", "type", "veth", *ends)
        _ip("link", "set", f"host{host}", "master", "exajax0", "up")
        for command in (
            ["link", "set", "lo", "up"],
            ["address", "add", f"{address_of(host)}/16", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
        ):
            _run(["nsenter", f"--net={self._folder}/{host}-net", "ip", *command])


def address_of(host: int | str) -> str:
    """Returns the address of a host in the network."""
    return f"10.77.{host}.1"


def name_of(host: int) -> str:
    """Returns the name of a host's machine."""
    return f"exajax-host-{host}"


def _ip(*command: str) -> None:
    _run(["ip", *command])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
