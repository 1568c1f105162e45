"""The list of all `EXAJAX_*` environment variables: name, form, purpose, and how each is read.

Most are set by one process of a job for another; `BY_HAND` are those that a person sets.
"""

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from exajax.errors import InputError, close_to

T = TypeVar("T")

PREFIX = "EXAJAX_"


@dataclass(frozen=True)
class Variable(Generic[T]):
    """An environment variable of exajax.

    Attributes:
        name: its name in the environment.
        read: parses its text; raises `ValueError` for a text of another form.
        form: the form of its text in words, for error messages.
        about: what it is for.
    """

    name: str
    read: Callable[[str], T]
    form: str
    about: str

    def get(self, env: Mapping[str, str] = os.environ) -> T | None:
        """The parsed value, None if the variable is not set.

        Raises:
            InputError: its text has another form.
        """
        if self.name not in env:
            return None
        try:
            return self.read(env[self.name])
        except ValueError:
            raise InputError(
                self.name, f"is {env[self.name]!r}", f"give {self.form}, or unset it"
            ) from None


def _matches(pattern: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(text)
        return text

    return read


def _count(text: str) -> int:
    return int(_matches(r"0*[1-9]\d{0,6}")(text))


def _index(text: str) -> int:
    return int(_matches(r"\d{1,7}")(text))


def _attempt(text: str) -> tuple[int, int]:
    host, number = map(int, _matches(r"\d{1,7}:\d{1,9}")(text).split(":"))
    return host, number


def _file(text: str) -> Path:
    path = Path(text)
    if not text or not os.path.isfile(path):
        raise ValueError(text)
    return path


def _shell(text: str) -> str:
    import shlex

    shlex.split(text)  # raises ValueError where a quote is open
    return text


ANY = _matches(r"(?s).*")
ONE = _matches("1")
COUNT, INDEX = "a whole number from 1 on", "a whole number from 0 on"

HOSTS = Variable("EXAJAX_HOSTS", _count, COUNT, "host processes of the job")
HOST = Variable("EXAJAX_HOST", _index, INDEX, "number of this host process")
LOCAL_HOST = Variable("EXAJAX_LOCAL_HOST", _index, INDEX, "number of the process on its node")
COORDINATOR = Variable(
    "EXAJAX_COORDINATOR", _matches(r"\S+:\d{1,5}"), "HOST:PORT", "where the processes meet"
)
ADDRESS = Variable(
    "EXAJAX_ADDRESS", _matches(r"\S+"), "a host name or address", "where others reach this host"
)
PODS = Variable("EXAJAX_PODS", _count, COUNT, "pods of a Kubernetes job")
JOB = Variable("EXAJAX_JOB", _matches(r"\S{1,200}"), "a name", "which start of the command it is")
ROLE = Variable(
    "EXAJAX_ROLE",
    _matches("supervisor|worker"),
    "supervisor or worker",
    "what a process of a supervised job is",
)
LAUNCHER = Variable("EXAJAX_LAUNCHER", ANY, "a text", "what a worker's rank was read from")
ATTEMPT = Variable(
    "EXAJAX_ATTEMPT", _attempt, "HOST:NUMBER", "the attempt that a training process belongs to"
)
COMPILE_ANEW = Variable(
    "EXAJAX_COMPILE_ANEW", ONE, "1", "a training process overwrites the compilation cache"
)
DEADLINES = Variable("EXAJAX_DEADLINES", ANY, "PHASE=S,...", "the option `deadlines`")
WALL_TIME_ENDS = Variable(
    "EXAJAX_WALL_TIME_ENDS",
    lambda text: float(_matches(r"\d{1,12}(\.\d{1,9})?")(text)),
    "seconds since 1970",
    "when the allocation ends; `wall_time` sets it",
)
LIFELINE = Variable(
    "EXAJAX_LIFELINE", ONE, "1", "the process ends with its parent, which holds its standard input"
)
HOST_PREFIX = Variable(
    "EXAJAX_HOST_PREFIX",
    _shell,
    "a command, with {host} for the host's number",
    "prefix of the command that starts each local host's supervisor",
)
FAULTS = Variable("EXAJAX_FAULTS", _file, "an existing file", "faults to inject, in TOML")
NAMESPACES = Variable("EXAJAX_NAMESPACES", ONE, "1", "the process runs in its own Linux namespaces")
CHAOS = Variable("EXAJAX_CHAOS", _matches(r"\S+"), "a word", "marks all processes of one job")

BY_HAND: tuple[Variable[Any], ...] = (HOST_PREFIX, ADDRESS, PODS, COORDINATOR, JOB)
VARIABLES: tuple[Variable[Any], ...] = (
    *BY_HAND,
    *(HOSTS, HOST, LOCAL_HOST, ROLE, LAUNCHER, ATTEMPT, COMPILE_ANEW, DEADLINES, WALL_TIME_ENDS),
    *(LIFELINE, FAULTS, NAMESPACES, CHAOS),
)


def check(env: Mapping[str, str] = os.environ) -> None:
    """Raises an `InputError` for the first `EXAJAX_*` variable that is malformed or misspelt.

    Unknown names that resemble none of exajax's pass: Kubernetes sets some for a service that is
    called exajax.
    """
    for variable in VARIABLES:
        variable.get(env)
    hosts, host = HOSTS.get(env), HOST.get(env)
    if (hosts is None) != (host is None):
        unset, is_set = (HOSTS, HOST) if hosts is None else (HOST, HOSTS)
        raise InputError(unset.name, f"is not set, and {is_set.name} is", "set both, or unset both")
    if hosts is not None and host is not None and host >= hosts:
        raise InputError(HOST.name, f"is {host} of {hosts} hosts", f"give 0 to {hosts - 1}")
    if ROLE.get(env) == "worker" and ATTEMPT.name not in env:
        raise InputError(ROLE.name, "is worker, and no supervisor has started this", "unset it")
    known = [variable.name for variable in VARIABLES]
    for name in sorted(env):
        unknown = name.startswith(PREFIX) and name not in known
        if unknown and (close := close_to(name, known, cutoff=0.9)):
            raise InputError(name, "is no variable of exajax", f"write {close}, or unset it")


def cache_folder(env: Mapping[str, str] = os.environ) -> Path | None:
    """Exajax's folder in the user's cache, None if no home folder is known.

    It is `$XDG_CACHE_HOME/exajax`, else `~/.cache/exajax`; a relative `XDG_CACHE_HOME` is ignored
    (XDG Base Directory Specification).
    """
    xdg_cache = env.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg_cache):
        return Path(xdg_cache) / "exajax"
    try:
        return Path.home() / ".cache" / "exajax"
    except RuntimeError:
        return None
