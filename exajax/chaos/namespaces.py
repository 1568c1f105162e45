"""A network of local hosts in Linux network namespaces, from which each host can be cut off.

Every host is a network namespace that a pair of virtual Ethernet devices connects to one bridge; a
host is cut off by setting its device down. It also has a host name of its own, since Gloo listens
on the address of its host name. This needs root, or a user namespace (`unshare -Urmn`).
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from exajax.job.environment import ADDRESS, HOST_PREFIX, NAMESPACES

HOLD = "echo {name} > /proc/sys/kernel/hostname; echo; exec cat"
"""Shell command that keeps the namespace of a host alive until its standard input ends."""

TOOLS = ("unshare", "nsenter", "ip", "mount", "umount")


def why_unavailable() -> str | None:
    """Why this process cannot create namespaces, None if it can."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing:
        return f"{', '.join(missing)} is not installed"
    trial = subprocess.run(
        [*_unshare(), "ip", "link", "add", "exajax0", "type", "bridge"],
        capture_output=True,
        text=True,
    )
    return trial.stderr.strip().splitlines()[-1] if trial.returncode else None


def enter() -> None:
    """Replaces this process by the same command in new namespaces, unless it runs in them.

    It stays the same process (`execve`), so that signals and the exit code are unchanged.
    """
    if NAMESPACES.get():
        _ip("link", "set", "lo", "up")  # it is down in a new network namespace
        return
    sys.stdout.flush()
    sys.stderr.flush()
    argv = [*_unshare(), *sys.orig_argv]
    os.execvpe(argv[0], argv, os.environ | {NAMESPACES.name: "1"})


def _unshare() -> list[str]:
    """The prefix of a command that may create mounts and networks of its own."""
    # Mounts in a private mount namespace are invisible outside, and end with it.
    flags = ["-mn"] if os.geteuid() == 0 else ["-Urmn"]
    return ["unshare", *flags, "--propagation", "private"]


class HostNetwork:
    """A network of hosts, each in its own namespace, as a context manager.

    Args:
        hosts: number of hosts.
        folder: takes links to the namespaces; created if missing.
    """

    def __init__(self, hosts: int, folder: Path) -> None:
        self._hosts, self._folder = hosts, folder
        self._holders: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "HostNetwork":
        self._folder.mkdir(parents=True, exist_ok=True)
        names = self._folder / "hosts"
        lines = [f"{address_of(host)} {host_name(host)}\n" for host in range(self._hosts)]
        names.write_text("127.0.0.1 localhost\n" + "".join(lines))
        _run(["mount", "--bind", str(names), "/etc/hosts"])
        _ip("link", "add", "exajax0", "type", "bridge")
        _ip("link", "set", "exajax0", "up")
        try:
            for host in range(self._hosts):
                self._add(host)
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
        """Environment of a local job's parent, which starts every supervisor in its namespace."""
        address = f"{ADDRESS.name}={address_of('{host}')}"
        names = f"--net={self._folder}/{{host}}-net --uts={self._folder}/{{host}}-uts"
        return {HOST_PREFIX.name: f"env {address} nsenter {names}"}

    def cut(self, host: int) -> None:
        """Disconnects a host from all others."""
        _ip("link", "set", f"host{host}", "down")

    def reconnect(self, host: int) -> None:
        """Connects a host to the others again."""
        _ip("link", "set", f"host{host}", "up")

    def _add(self, host: int) -> None:
        """Creates the namespace of a host, which lasts as long as a process is in it."""
        holder = subprocess.Popen(
            ["unshare", "-nu", "sh", "-c", HOLD.format(name=host_name(host))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._holders.append(holder)
        assert holder.stdout
        holder.stdout.readline()  # once it has printed, it is in the namespace
        for kind in ("net", "uts"):
            link = self._folder / f"{host}-{kind}"
            link.unlink(missing_ok=True)
            link.symlink_to(f"/proc/{holder.pid}/ns/{kind}")
        peer = ["peer", "name", "eth0", "netns", str(holder.pid)]
        _ip("link", "add", f"host{host}", "type", "veth", *peer)
        _ip("link", "set", f"host{host}", "master", "exajax0", "up")
        for command in (
            ["link", "set", "lo", "up"],
            ["address", "add", f"{address_of(host)}/16", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
        ):
            _run(["nsenter", f"--net={self._folder}/{host}-net", "ip", *command])


def address_of(host: int | str) -> str:
    """The IPv4 address of a host in the network."""
    return f"10.77.{host}.1"


def host_name(host: int) -> str:
    """The host name of a host."""
    return f"exajax-host-{host}"


def _ip(*command: str) -> None:
    _run(["ip", *command])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
