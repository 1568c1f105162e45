"""XLA's own guess of a step's time: the simulated clock of its latency hiding scheduler."""

from collections.abc import Mapping

from exajax.program.hlo import Module
from exajax.program.trips import trips


def estimate_s(times_us: Mapping[str, float], module: Module) -> float | None:
    """Returns the seconds of a step by the scheduler's cost model, None where it says nothing.

    XLA schedules each computation by itself, and in it a loop as an instruction of no length:
    here every loop adds its body's time, times its trips.

    Args:
        times_us: what each computation takes by the scheduler; empty where it does not say.
        module: the scheduled module, which knows the loops.
    """
    if module.entry not in times_us:
        return None
    return _with_loops(module.entry, times_us, module) / 1e6


def _with_loops(name: str, times_us: Mapping[str, float], module: Module) -> float:
    total_us = times_us[name]
    for instruction in module.computations[name].instructions:
        body = instruction.called("body") if instruction.opcode == "while" else ""
        if body in times_us:
            count = trips(instruction, module.computations[name], module)
            total_us += (1 if count is None else count) * _with_loops(body, times_us, module)
    return total_us
