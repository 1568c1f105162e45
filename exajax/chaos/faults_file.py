"""Schedules of faults in TOML files.

[[fault]]
kind = "kill"
target = 1
role = "supervisor"
at_s = 12.5
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from exajax.chaos.faults import COMMIT, KINDS, ROLES, TARGETS, Fault, Role
from exajax.errors import InputError, nearest
from exajax.files.reading import MOST_BYTES, Malformed
from exajax.files.schema import Schema, load
from exajax.job.events import PHASES
from exajax.machine.sourced_values import integer, number, one_of

MOST_FAULTS = 10_000

MOST_S = 1e9
"""Upper bound of times and durations, seconds: 30 years."""


DETAILS = ("share", "bits", "bit")
"""Fields that only some kinds of faults have."""


def _target(value: Any) -> int | str:
    return one_of(value, TARGETS) if isinstance(value, str) else integer(value, 0, 10**6)


Seconds = Annotated[float, BeforeValidator(lambda value: number(value, 0, MOST_S))]


class FaultTable(Schema):
    """A `[[fault]]` table. The fault is due once `at_s`, `step` and `phase`, where given, all hold.

    Attributes:
        kind: what breaks, one of `faults.KINDS`.
        target: number of a host from 0, or `any`, `leader`, `parent`.
        role: the process of the target that gets a signal: `worker`, `supervisor`, `parent`.
        at_s: least seconds since the start of the job.
        step: least update that a worker of the target has reached.
        phase: phase of the target's worker.
        duration_s: seconds that it lasts.
        share: share of the time that a `slow-host` is stopped, or of a file that a `truncate` cuts
            off.
        bits: number of bits that a `bit-flip` flips.
        bit: number of the bit that a `flip-parameter` flips.
    """

    kind: Annotated[str, BeforeValidator(lambda value: one_of(value, KINDS))]
    target: Annotated[int | str | None, PlainValidator(_target)] = None
    role: Annotated[Role | None, BeforeValidator(lambda value: one_of(value, ROLES))] = None
    at_s: Seconds | None = None
    step: Annotated[int, Field(ge=0, le=10**12)] | None = None
    phase: Annotated[
        str | None, BeforeValidator(lambda value: one_of(value, (*PHASES, COMMIT)))
    ] = None
    duration_s: Seconds | None = None
    share: float | None = None
    bits: int | None = None
    bit: int | None = None

    @model_validator(mode="after")
    def _check_consistent(self) -> "FaultTable":
        kind = KINDS[self.kind]
        if self.role is not None and not kind.signals:
            raise Malformed("role", f"is given, and a {self.kind} is no signal", "leave it out")
        role, target = self.role_and_target()
        if (target == "parent") != (role == "parent") or (target == "parent" and not kind.signals):
            fix = "give a host, any or leader" if target == "parent" else 'give target = "parent"'
            raise Malformed("target", f"is {target!r}, which does not go with a {role}", fix)
        if self.at_s is None and self.step is None and self.phase is None:
            raise Malformed("at_s", "is missing: nothing says when", "give at_s, step or phase")
        only_step = self.at_s is None and self.phase is None and self.step is not None
        if kind.stepwise and not only_step:
            raise Malformed("step", f"alone says when a {self.kind} comes", "give step alone")
        if self.duration_s is None and kind.lasts == "yes":
            raise Malformed("duration_s", f"is missing: a {self.kind} lasts", "give seconds")
        if self.duration_s is not None and kind.lasts == "no":
            raise Malformed("duration_s", f"is given: a {self.kind} takes no time", "leave it out")
        for name in DETAILS:
            self._check_detail(name)
        return self

    def _check_detail(self, name: str) -> None:
        value, details = getattr(self, name), KINDS[self.kind].details
        if value is None:
            return
        if name not in details:
            known = {*type(self).model_fields} - {*DETAILS} | {*details}
            raise Malformed(name, f"is no field of a {self.kind}", nearest(name, known))
        _, least, most = details[name]
        try:
            number(value, least, most)
        except Malformed as error:
            raise Malformed(name, error.problem, error.fix) from None

    def role_and_target(self) -> tuple[Role, int | str]:
        """Role and target, with defaults; either may be the only one that says `parent`."""
        role = self.role or ("parent" if self.target == "parent" else "worker")
        if self.target is not None:
            return role, self.target
        return role, "parent" if role == "parent" else "any"

    def fault(self, number: int) -> Fault:
        """The fault that the table describes.

        Args:
            number: of the fault in its schedule.
        """
        role, target = self.role_and_target()
        details = {name: getattr(self, name) for name in KINDS[self.kind].details}
        given = {name: value for name, value in details.items() if value is not None}
        return Fault(
            number,
            self.kind,
            target,
            role,
            self.at_s,
            self.step,
            self.phase,
            self.duration_s,
            MappingProxyType(given),
        )


class FaultsFile(Schema):
    """A schedule file: a list of `[[fault]]` tables."""

    fault: Annotated[
        tuple[FaultTable, ...], Field(min_length=1, max_length=MOST_FAULTS, strict=False)
    ]


def read(path: Path) -> tuple[Fault, ...]:
    """The schedule in a file.

    Raises:
        InputError: the file cannot be read, or a field of a table is wrong.
    """
    tables = load(path, FaultsFile, "faults", most_bytes=4 * MOST_BYTES).fault
    return tuple(table.fault(i) for i, table in enumerate(tables))


def write(faults: Iterable[Fault], path: Path) -> None:
    """Writes a schedule that `read` reads; faults are numbered in their order."""
    path.write_text("\n".join(map(_table, faults)))


def check_targets(faults: Sequence[Fault], hosts: int) -> None:
    """Raises an `InputError` if the target of a fault is a host that the job does not have."""
    for fault in faults:
        if isinstance(fault.target, int) and fault.target >= hosts:
            raise InputError(
                f"fault[{fault.id}].target",
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
