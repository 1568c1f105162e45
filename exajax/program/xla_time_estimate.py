"""XLA's own estimate of a step's time, by the cost model of its latency-hiding scheduler."""

from collections.abc import Mapping

from exajax.program.hlo import Module
from exajax.program.trips import trip_count


def estimate_s(times_us: Mapping[str, float], module: Module) -> float | None:
    """Seconds of a step by the scheduler's cost model, None if there is no schedule.

    XLA schedules each computation separately, with 0 s for a loop in it: so the time of each loop's
    body x its trips is added here.

    Args:
        times_us: microseconds of each computation by the scheduler, loops in it excluded.
        module: the scheduled module.
    """
    if module.entry not in times_us:
        return None
    return _with_loops(module.entry, times_us, module) / 1e6


def _with_loops(name: str, times_us: Mapping[str, float], module: Module) -> float:
    total_us = times_us[name]
    for instruction in module.computations[name].instructions:
        body = instruction.called("body") if instruction.opcode == "while" else ""
        if body in times_us:
            count = trip_count(instruction, module.computations[name], module)
            total_us += (1 if count is None else count) * _with_loops(body, times_us, module)
    return total_us
