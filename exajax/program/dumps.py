"""What XLA writes down of a compiled program for its own developers, as far as it is read here.

Where every value lies in memory (buffer assignment), when it is alive (live ranges), and how long
XLA's scheduler thinks each computation takes (`ScheduleProto`). None of it is to be had from a
compiled program; `memory_analysis` has totals alone. Relied on, in XLA as of jax 0.10.2 to 0.12.0:
the options `xla_dump_to` and `xla_dump_latency_hiding_schedule`, the names of the files, and their
texts. Nothing here fails where XLA writes something else: a prediction then counts all that a step
makes as temporaries and has a note that says so, and has no estimate of XLA's. What it prices does
not depend on it. `tests/program/test_dumps.py` compiles a program and finds all three.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Value(NamedTuple):
    """A value: its bytes start at `offset`, and it is live from step `first` to step `last`."""

    name: str
    bytes: int
    offset: int
    shape: str
    first: int
    last: int


@dataclass(frozen=True)
class Dumps:
    """What XLA has written of one program, as text; empty where it wrote nothing.

    Attributes:
        assignment: of its values to bytes.
        live_ranges: when they are alive.
        schedule: of its computations, by the latency hiding scheduler.
        starts: instruction that starts it, by the name of an operation that the text of the
            compiled program has no name for.
    """

    assignment: str
    live_ranges: str
    schedule: str
    starts: Mapping[str, str]

    @classmethod
    def options(cls, folder: str) -> dict[str, Any]:
        """Compiler options with which XLA dumps into a folder."""
        return {"xla_dump_to": folder, "xla_dump_latency_hiding_schedule": True}

    @classmethod
    def read(cls, folder: Path, module: str) -> "Dumps":
        """The dumps of a module in a folder, by the text of the module."""
        name = module.removeprefix("HloModule ").partition(",")[0]
        dumped = _largest(folder, f"*.{name}.*_after_optimizations.txt")
        return cls(
            _largest(folder, f"*.{name}.*-buffer-assignment.txt"),
            _largest(folder, f"*.{name}.*-live-range.txt"),
            _largest(folder, f"*{name}.schedule.txt"),
            _start_of_fusion(dumped, module),
        )

    def values(self) -> list[Value]:
        """Values in the block of temporaries of the device's memory.

        Their names are those of instructions in the text of the compiled program.
        """
        live_steps = self._live_steps()
        values, in_temporaries = [], False
        for line in self.assignment.splitlines():
            if line.startswith("allocation"):
                in_temporaries = (
                    "preallocated-temp" in line and ", color" not in line
                )  # a color: of hosts
            elif in_temporaries and (match := _VALUE.match(line)):
                name = match["name"] if match["name"].endswith("}") else match["name"] + "{}"
                if name in live_steps:
                    where = int(match["size"]), int(match["offset"])
                    instruction, _, index = name.partition("{")
                    known = f"{self.starts.get(instruction, instruction)}{{{index}"
                    values.append(Value(known, *where, match["shape"], *live_steps[name]))
        return values

    def _live_steps(self) -> Mapping[str, tuple[int, int]]:
        text = self.live_ranges.partition("BufferLiveRange:")[2].partition("Live ranges at")[0]
        return {name: (int(first), int(last)) for name, first, last in _RANGE.findall(text)}

    def times_us(self) -> dict[str, float]:
        """Microseconds of each scheduled computation by XLA's cost model, loops in it excluded."""
        module, *schedules = self.schedule.split("\ncomputation_schedules {")
        names = {}
        for text in module.split("\n  computations {")[1:]:
            name, number = (
                re.search(r'\n    name: "(.*)"', text),
                re.search(r"\n    id: (\d+)", text),
            )
            if name and number:
                names[number[1]] = name[1]
        times_us = {}
        for text in schedules:
            match = dict(re.findall(r"\b(\w+): ([\d.e+]+)$", text, re.M))
            if match.keys() >= {"computation_id", "total_cycles", "cycles_per_microsecond"}:
                us = float(match["total_cycles"]) / float(match["cycles_per_microsecond"])
                times_us[names[match["computation_id"]]] = us
        return times_us


_VALUE = re.compile(
    r" value: <\d+ (?P<name>\S+)(?: \(phi\))? @\d+> "
    r"\(size=(?P<size>\d+),offset=(?P<offset>\d+)\): (?P<shape>.*)"
)
_RANGE = re.compile(r"^    (\S+\{[\d,]*\}):(\d+)-(\d+)$", re.MULTILINE)

_FUSION = re.compile(
    r"^%(\S+) \([^\n]*\{\n(?:  %[^\n]*\n)*  ROOT %(\S+) = [^\n]* fusion\(", re.MULTILINE
)
_START = re.compile(r"^  (?:ROOT )?%(\S+) = .* async-start\(.*, calls=%([\w.\-$]+)", re.MULTILINE)


def _start_of_fusion(dumped: str, module: str) -> dict[str, str]:
    """The instruction that starts an asynchronous fusion, by the name of the fusion.

    XLA has them as of jax 0.12. A dump has a computation around each; the text of the compiled
    program writes `fusion-start` for start and computation together, and loses the name of what is
    in it. Collectives are alike in both releases, and what they make has a role by itself.

    Args:
        dumped: the module as XLA has written it.
        module: the text of the compiled program.
    """
    roots = dict(_FUSION.findall(dumped))
    started = {roots[called]: name for name, called in _START.findall(dumped) if called in roots}
    return {inner: name for inner, name in started.items() if f"%{inner} = " not in module}


def _largest(folder: Path, pattern: str) -> str:
    """Content of the largest file that matches a pattern; empty if there is none."""
    texts = [path.read_text() for path in sorted(folder.glob(pattern))]
    return max(texts, key=len, default="")
