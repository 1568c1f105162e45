"""The result of a training under faults, compared with an undisturbed one, as JSON."""

import dataclasses
from pathlib import Path
from typing import Any

from exajax.chaos.outcome import Outcome, outcomes
from exajax.chaos.run import DisturbedRun
from exajax.job import runtime
from exajax.job.events import read_events
from exajax.job.goodput import goodput_of_events
from exajax.resilience.deadlines import Deadlines
from exajax.resilience.lease import UNKNOWN, Lease


def chaos_report(
    undisturbed: Path, disturbed: Path, steps: int, run: DisturbedRun, deadlines: Deadlines
) -> dict[str, Any]:
    """The effects and the costs of the faults.

    Args:
        undisturbed: folder of the undisturbed run, which is done.
        disturbed: folder of the disturbed run; the injector's events are in the folder above it.
        steps: number of steps of both runs.
        run: how the disturbed run ended.
        deadlines: of its training processes.
    """
    effects = _effects(undisturbed, disturbed, steps, run)
    return effects | _costs(undisturbed, disturbed, run, deadlines)


def _effects(undisturbed: Path, disturbed: Path, steps: int, run: DisturbedRun) -> dict[str, Any]:
    """The end state of the disturbed run, compared with the undisturbed one."""
    runtime.import_jax()
    from exajax.chaos import end_state

    survived = run.code == 0 and end_state.newest_step(disturbed) == steps
    difference = None
    if survived:
        difference = end_state.compare_checkpoints(undisturbed, disturbed, steps)
    samples = end_state.compare_samples(undisturbed, disturbed)
    events = read_events(disturbed)
    meshes = {event.get("mesh") for event in events if event["event"] == "attempt"}
    bad_steps = sum(event["event"] == "bad-step" for event in events)
    promised = len(meshes) == 1 and not bad_steps
    identical = bool(difference and difference.identical and samples.same)
    bad_checkpoints = end_state.bad_checkpoints(disturbed)
    holder = Lease(disturbed / ".job", UNKNOWN, -1).holder()
    locks = [f"lease-{holder.epoch:06d}"] if holder else []
    clean = not (bad_checkpoints or locks or run.orphans or run.not_injected)
    return {
        "survived": survived,
        "end_state_identical": identical,
        "passed": survived and clean and (identical or not promised),
        "identity_promised": promised,
        "largest_difference": difference and difference.largest,
        "different_arrays": difference and list(difference.arrays),
        "samples_missing": samples.missing,
        "samples_repeated": samples.repeated,
        "half_checkpoints": bad_checkpoints,
        "stale_locks": locks,
        "orphans": list(run.orphans),
        "meshes": sorted(meshes),
        "bad_steps": bad_steps,
    }


def _costs(
    undisturbed: Path, disturbed: Path, run: DisturbedRun, deadlines: Deadlines
) -> dict[str, Any]:
    """The time that the faults cost, and how soon each was detected."""
    events = read_events(disturbed)
    goodput = goodput_of_events(events)
    events = sorted([*events, *read_events(disturbed.parent)], key=lambda event: event["time"])
    faults = outcomes(events, run.began_s, deadlines, _startup_s(undisturbed))
    return {
        "faults": [_fault_json(outcome) for outcome in faults],
        "not_injected": list(run.not_injected),
        "starts": run.starts,
        "attempts": max((event["attempt"] for event in events), default=0),
        "replayed_steps": goodput.replayed_steps,
        "wall_s": run.wall_s,
        "goodput": goodput.useful_s / run.wall_s,
        "seconds": goodput.to_json(),
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
    """Three times the seconds from the start of an undisturbed run to its first step."""
    events = read_events(run_dir)
    first = next(event["time"] for event in events if _is_step(event))
    return 3.0 * float(first - events[0]["time"])
