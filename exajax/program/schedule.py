"""XLA's own guess of a step's time: the simulated clock of its latency hiding scheduler."""

import re

from exajax.program.hlo import Module
from exajax.program.trips import trips


def estimate_s(dumped: str, module: Module) -> float | None:
    """Returns the seconds of a step by the scheduler's cost model, None where it says nothing.

    XLA schedules each computation by itself, and in it a loop as an instruction of no length:
    here every loop adds its body's time, times its trips.

    Args:
        dumped: XLA's `ScheduleProto` in text form (`--xla_dump_latency_hiding_schedule`).
        module: the scheduled module, which knows the loops.
    """
    times_us = _times_us(dumped)
    if module.entry not in times_us:
        return None
    return _with_loops(module.entry, times_us, module) / 1e6


def _with_loops(name: str, times_us: dict[str, float], module: Module) -> float:
    total_us = times_us[name]
    for instruction in module.computations[name].instructions:
        body = instruction.called("body") if instruction.opcode == "while" else ""
        if body in times_us:
            count = trips(instruction, module.computations[name], module)
            total_us += (1 if count is None else count) * _with_loops(body, times_us, module)
    return total_us


def _times_us(dumped: str) -> dict[str, float]:
    """Returns the microseconds that each scheduled computation takes."""
    module, *schedules = dumped.split("\ncomputation_schedules {")
    names = {}
    for text in module.split("\n  computations {")[1:]:
        name, number = re.search(r'\n    name: "(.*)"', text), re.search(r"\n    id: (\d+)", text)
        if name and number:
            names[number[1]] = name[1]
    times_us = {}
    for text in schedules:
        found = dict(re.findall(r"\b(\w+): ([\d.e+]+)$", text, re.M))
        if found.keys() >= {"computation_id", "total_cycles", "cycles_per_microsecond"}:
            us = float(found["total_cycles"]) / float(found["cycles_per_microsecond"])
            times_us[names[found["computation_id"]]] = us
    return times_us
