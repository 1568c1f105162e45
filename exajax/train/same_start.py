"""Before the first step: all hosts must have the same versions, recipe, options and data.

Every host reads its own files and runs its own installation. Where they differ the step would still
run: on two texts that nobody knows of, or until a collective waits for ever.
"""

import collections
import contextlib
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exajax.errors import InputError
from exajax.train.checkpoint.agreement import Agreement, NotAgreedError

LIMIT_S = 600.0
"""Seconds that the other hosts have to read their data after the first one has."""

LEAVE_S = 10.0
"""Seconds that the other processes have to end before the first one does."""

FIXES = {
    "versions": "install the same on every host",
    "recipe": "start every host with the same flags and the same files",
    "options": "start every host with the same flags",
    "data": "give every host the same files under the same path",
}
"""What is compared, in this order, and how to mend a difference."""

HASH_CHARACTERS = 16
"""Characters of a SHA-256 shown in a message: no two corpora share as many by chance."""


@dataclass(frozen=True)
class Host:
    """One host of the job.

    Attributes:
        number: of the host, as its supervisor counts.
        name: of its machine.
    """

    number: int
    name: str

    def __str__(self) -> str:
        return f"host {self.number} ({self.name})"


def check(number: int, problem: InputError | None, facts: Mapping[str, Any]) -> None:
    """Raises an `InputError` on every process of a job if one has a problem, or if two differ.

    Args:
        number: of this process's host.
        problem: what is wrong with the input of this process; None if nothing is.
        facts: what it starts from, under the keys of `FIXES`, as JSON; not looked at if any process
            has a problem.
    """
    report = {
        "host": [number, socket.gethostname()],
        "problem": problem and [problem.field, problem.problem, problem.fix],
        "facts": facts,
    }
    agreement = Agreement()
    refusal = agreement.on("start", report, _refusal, LIMIT_S)
    if refusal:
        # The coordination service ends with the first process, and aborts those still connected.
        with contextlib.suppress(NotAgreedError):
            agreement.last("leave", LEAVE_S)
        raise InputError(*refusal)


def _refusal(reports: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """Returns field, problem and fix of what is wrong, None if nothing is."""
    hosts = [Host(*report["host"]) for report in reports]
    problems = {
        host: tuple(report["problem"])
        for host, report in zip(hosts, reports, strict=True)
        if report["problem"]
    }
    if problems:
        field, problem, fix = first = next(iter(problems.values()))
        refusing = [host for host, other in problems.items() if other == first]
        where = "" if len(refusing) == len(hosts) else f"on {_named(refusing)}, "
        return [field, where + problem, fix]
    return difference(hosts, [report["facts"] for report in reports])


def difference(hosts: Sequence[Host], facts: Sequence[Mapping[str, Any]]) -> list[str] | None:
    """Returns field, problem and fix of the first fact in which hosts differ, None if none is.

    Args:
        hosts: of the job.
        facts: what each of them starts from, under the keys of `FIXES`.
    """
    for topic, fix in FIXES.items():
        flat = [_flat(topic, fact[topic]) for fact in facts]
        for key in dict.fromkeys(key for values in flat for key in values):
            by_value: dict[str, list[Host]] = collections.defaultdict(list)
            for host, values in zip(hosts, flat, strict=True):
                by_value[_shown(values.get(key))].append(host)
            if len(by_value) > 1:
                # The fewest first: they are most likely wrong. Of two hosts, the later.
                odd = sorted(by_value.items(), key=lambda item: (len(item[1]), -item[1][0].number))
                shown = " and ".join(f"{value} on {_named(who)}" for value, who in odd[:2])
                return [key, f"the hosts do not start from the same: it is {shown}", fix]
    return None


def _named(hosts: Sequence[Host]) -> str:
    shown = ", ".join(map(str, hosts[:3]))
    return f"{shown} and {len(hosts) - 3} others" if len(hosts) > 3 else shown


def _flat(where: str, value: Any) -> dict[str, Any]:
    """Returns the leaves of nested tables and lists by their path, `data.parts.0.sha256`."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        return {where: value}
    flat: dict[str, Any] = {}
    for key, inner in items:
        flat |= _flat(f"{where}.{key}", inner)
    return flat


def _shown(value: Any) -> str:
    if value is None:
        return "nothing"
    text = str(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[: HASH_CHARACTERS if is_hash else 200]
