"""Schedules of faults in TOML, every field checked.

[[fault]]
kind = "kill"
target = 1
role = "supervisor"
at_s = 12.5
"""

import json
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from exajax.errors import InputError, nearest
from exajax.faults import COMMIT, KINDS, PHASES, ROLES, TARGETS, Fault, Kind, Role


def read(path: Path) -> tuple[Fault, ...]:
    """Reads a schedule.

    Raises:
        InputError: the file cannot be read, or a table is no fault; names its field.
    """
    try:
        content = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            "--faults", f"{path} cannot be read ({problem})", "give a TOML file"
        ) from error
    tables = content.pop("fault", None)
    if content or not isinstance(tables, list) or not tables:
        raise InputError("--faults", f"{path} is no list of faults", "write [[fault]] tables")
    return tuple(_fault(i, table, f"{path} [[fault]] {i + 1}") for i, table in enumerate(tables))


def write(faults: Iterable[Fault], path: Path) -> None:
    """Writes a schedule that `read` reads. Its faults are numbered as they come."""
    path.write_text("\n".join(map(_table, faults)))


def check_targets(faults: Sequence[Fault], hosts: int) -> None:
    """Raises an `InputError` if a fault is aimed at a host that the job does not have."""
    for fault in faults:
        if isinstance(fault.target, int) and fault.target >= hosts:
            raise InputError(
                f"[[fault]] {fault.id + 1} target",
                f"there is no host {fault.target} among {hosts}",
                f"give 0 to {hosts - 1}, or one of {', '.join(TARGETS)}",
            )


def _table(fault: Fault) -> str:
    lines = ["[[fault]]"]
    for entry in fields(Fault):
        value = getattr(fault, entry.name)
        if entry.name in ("id", "details") or value is None:
            continue
        if entry.name != "role" or KINDS[fault.kind].signals:
            lines.append(f"{entry.name} = {json.dumps(value)}")
    return "\n".join([*lines, *(f"{name} = {value}" for name, value in fault.details.items()), ""])


def _fault(number: int, table: Any, where: str) -> Fault:
    if not isinstance(table, dict):
        raise InputError(where, "it is no table", "write [[fault]]")
    kind = str(table.get("kind"))
    if kind not in KINDS:
        raise InputError(f"{where} kind", f"{kind!r} is none", nearest(kind, KINDS))
    about = KINDS[kind]
    known = {entry.name for entry in fields(Fault)} - {"id", "details"} | set(about.details)
    for name in table:
        if name not in known:
            raise InputError(f"{where} {name}", f"a {kind} has no such field", nearest(name, known))
    read = _Fields(table, where)
    role, target = _whom(read, about)
    at_s, step, phase = read.number("at_s"), read.number("step", whole=True), table.get("phase")
    if phase is not None and phase not in (*PHASES, COMMIT):
        raise InputError(f"{where} phase", f"{phase!r} is none", nearest(str(phase), PHASES))
    if at_s is None and step is None and phase is None:
        raise InputError(f"{where} at_s", "nothing says when", "give at_s, step or phase")
    if about.stepwise and (step is None or at_s is not None or phase is not None):
        raise InputError(f"{where} step", f"a {kind} comes with a step", "give step alone")
    duration_s = read.number("duration_s")
    if duration_s is None and about.lasts == "yes":
        raise InputError(f"{where} duration_s", f"a {kind} lasts", "give seconds")
    if duration_s is not None and about.lasts == "no":
        raise InputError(f"{where} duration_s", f"a {kind} takes no time", "leave it out")
    details = {
        name: value
        for name, (_, least, most) in about.details.items()
        if (value := read.number(name, least, most)) is not None
    }
    return Fault(
        number,
        kind,
        target,
        role,
        at_s,
        None if step is None else int(step),
        phase,
        duration_s,
        MappingProxyType(details),
    )


def _whom(read: "_Fields", about: Kind) -> tuple[Role, int | str]:
    """Returns role and target; each says the other where one of them is the parent."""
    where, table = read.where, read.table
    if "role" in table and not about.signals:
        raise InputError(f"{where} role", f"a {table['kind']} is no signal", "leave it out")
    target = table.get("target")
    role = table.get("role", "parent" if target == "parent" else "worker")
    target = ("parent" if role == "parent" else "any") if target is None else target
    if role not in ROLES:
        raise InputError(f"{where} role", f"{role!r} is none", nearest(str(role), ROLES))
    if isinstance(target, str) and target not in TARGETS:
        raise InputError(f"{where} target", f"{target!r} is none", nearest(target, TARGETS))
    if not isinstance(target, str):
        target = int(read.number("target", whole=True) or 0)
    if (target == "parent") != (role == "parent") or (target == "parent" and not about.signals):
        fix = "give a host, any or leader" if target == "parent" else 'give target = "parent"'
        raise InputError(f"{where} target", f"{target!r} does not go with a {role}", fix)
    return role, target


@dataclass(frozen=True)
class _Fields:
    """The numbers of a table, checked as they are read."""

    table: Mapping[str, Any]
    where: str

    def number(
        self, name: str, least: float = 0, most: float = math.inf, *, whole: bool = False
    ) -> float | None:
        value = self.table.get(name)
        if value is None:
            return None
        wanted = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted) or not math.isfinite(value):
            kind = "a whole number" if whole else "a number"
            raise InputError(f"{self.where} {name}", f"{value!r} is not {kind}", f"give {kind}")
        if not least <= value <= most:
            limits = f"from {least} on" if most == math.inf else f"from {least} to {most}"
            raise InputError(f"{self.where} {name}", f"it is {value}", f"give a number {limits}")
        return value
