"""What a disturbed training has come to, beside an undisturbed one, as JSON."""

import dataclasses
from pathlib import Path
from typing import Any

from exajax.chaos.outcome import Outcome, outcomes
from exajax.chaos.run import Ended
from exajax.job import goodput, runtime
from exajax.job.events import read_events
from exajax.resilience.deadlines import Deadlines
from exajax.resilience.lease import UNKNOWN, Lease


def report(
    undisturbed: Path, disturbed: Path, steps: int, ended: Ended, deadlines: Deadlines
) -> dict[str, Any]:
    """Returns what the faults have done, and what they cost.

    Args:
        undisturbed: folder of the undisturbed run, which is done.
        disturbed: folder of the other one; what was injected is told in events beside it.
        steps: that both were to make.
        ended: how the disturbed one ended.
        deadlines: of its training processes.
    """
    compared = _compared(undisturbed, disturbed, steps, ended)
    return compared | _accounted(undisturbed, disturbed, ended, deadlines)


def _compared(undisturbed: Path, disturbed: Path, steps: int, ended: Ended) -> dict[str, Any]:
    """Returns what the disturbed run has come to, beside the undisturbed one."""
    runtime.import_jax()
    from exajax.chaos import end_state as ends

    survived = ended.code == 0 and ends.newest(disturbed) == steps
    difference = ends.differences(undisturbed, disturbed, steps) if survived else None
    samples = ends.samples(undisturbed, disturbed)
    events = read_events(disturbed)
    meshes = {event.get("mesh") for event in events if event["event"] == "attempt"}
    bad_steps = sum(event["event"] == "bad-step" for event in events)
    promised = len(meshes) == 1 and not bad_steps
    identical = bool(difference and difference.identical and samples.same)
    half = ends.half_checkpoints(disturbed)
    holder = Lease(disturbed / ".job", UNKNOWN, -1).holder()
    locks = [f"lease-{holder.epoch:06d}"] if holder else []
    clean = not (half or locks or ended.orphans or ended.not_injected)
    return {
        "survived": survived,
        "end_state_identical": identical,
        "passed": survived and clean and (identical or not promised),
        "identity_promised": promised,
        "largest_difference": difference and difference.largest,
        "different_arrays": difference and list(difference.arrays),
        "samples_missing": samples.missing,
        "samples_repeated": samples.repeated,
        "half_checkpoints": half,
        "stale_locks": locks,
        "orphans": list(ended.orphans),
        "meshes": sorted(meshes),
        "bad_steps": bad_steps,
    }


def _accounted(
    undisturbed: Path, disturbed: Path, ended: Ended, deadlines: Deadlines
) -> dict[str, Any]:
    """Returns what the faults cost, and how soon each was noticed."""
    events = read_events(disturbed)
    accounts = goodput.goodput_of_events(events)
    events = sorted([*events, *read_events(disturbed.parent)], key=lambda event: event["time"])
    found = outcomes(events, ended.began_s, deadlines, _startup_s(undisturbed))
    return {
        "faults": [_fault_json(outcome) for outcome in found],
        "not_injected": list(ended.not_injected),
        "starts": ended.starts,
        "attempts": max((event["attempt"] for event in events), default=0),
        "replayed_steps": accounts.replayed_steps,
        "wall_s": ended.wall_s,
        "goodput": accounts.useful_s / ended.wall_s,
        "seconds": accounts.to_json(),
    }


def _fault_json(outcome: Outcome) -> dict[str, Any]:
    facts = dataclasses.asdict(outcome) | {"in_time": outcome.in_time}
    return {
        "kind": facts.pop("kind"),
        "target": facts.pop("target"),
        "at": facts.pop("at_s"),
    } | facts


def _is_step(event: dict[str, Any]) -> bool:
    return bool(event["event"] == "phase" and event["phase"] == "step")


def _startup_s(run_dir: Path) -> float:
    """Returns the seconds from the start of a run to its first step, threefold: it was alone."""
    events = read_events(run_dir)
    first = next(event["time"] for event in events if _is_step(event))
    return 3.0 * float(first - events[0]["time"])
