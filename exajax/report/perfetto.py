"""Traces of simulated steps, as ui.perfetto.dev and chrome://tracing open them."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from exajax import units
from exajax.machine.chip import Chip
from exajax.machine.cluster import Cluster
from exajax.program.labels import label
from exajax.program.operations import Operation, Program, ProgramLoop, flatten
from exajax.simulate.collectives.pricing import collective_price
from exajax.simulate.kernels import PRECISIONS, price
from exajax.simulate.timeline import Event

NAME = "trace.json.gz"
"""What the file is called, wherever one is written."""

MOST = 200_000
"""Events of a step that are written; what comes behind them is left out, and said to be."""

EXPOSED = "exposed"
THREADS = {"loops": 1, "compute": 2, "communication": 3, "host": 4}
COLORS = {
    "attention": "thread_state_runnable",
    "mlp": "thread_state_running",
    "experts": "thread_state_running",
    "optimizer": "olive",
    "logits": "rail_response",
    "embed": "rail_response",
    "communication": "yellow",
    "waiting": "bad",
}
"""Colours by part, from the fixed names of the format; ui.perfetto.dev colours by name instead."""

Trace = dict[str, Any]
Slice = dict[str, Any]


def simulated(title: str, program: Program, events: Sequence[Event], cluster: Cluster) -> Trace:
    """Returns a simulated step as a trace of one process, every trip of every loop in it.

    Args:
        title: what was simulated, such as `llama2-70b 128x8 on dgx-h100`.
        program: what one device does.
        events: all that it does, in order of time (`timeline.events`).
        cluster: where.
    """
    kept = events[:MOST]
    trips = _Trips(program)
    facts = {op.name: _facts(op, cluster) for op, _ in flatten(program)}
    slices = [
        _slice(event, trips.next(event), facts[event.op.name], cluster.chip) for event in kept
    ]
    if len(events) > len(kept):
        note = f"cut here: {len(events) - len(kept):,} of {len(events):,} events are left out"
        slices.append(_complete(note, "compute", _end(kept[-1]), 0.0, {}))
    if cluster.software.step_s:
        ends_s = max(map(_end, events), default=0.0)
        slices.append(_complete("host", "compute", ends_s, cluster.software.step_s, {}))
    return process(f"simulated: {title}", THREADS, [*trips.slices(), *slices])


def process(title: str, threads: Mapping[str, int], slices: Sequence[Slice]) -> Trace:
    """Returns a trace of one process.

    Args:
        title: of the process.
        threads: number by name.
        slices: what happened, each on one of the threads.
    """
    named = [_named("process_name", 0, title)]
    for thread, tid in threads.items():
        order = {"ph": "M", "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}}
        named += [_named("thread_name", tid, thread), order]
    return merged([{"traceEvents": [*named, *slices]}])


def names_of(trace: Trace) -> dict[str, str]:
    """Returns what the instructions of a simulated step are called in its trace."""
    named: dict[str, str] = {}
    for event in trace["traceEvents"]:
        waits = event["name"].startswith(EXPOSED)
        if event["ph"] == "X" and event["tid"] != THREADS["loops"] and not waits:
            named.setdefault(event["args"].get("hlo", ""), event["name"])
    return named


def merged(traces: Iterable[Trace]) -> Trace:
    """Returns several traces as one, each a process of its own, in their order."""
    events = [
        {**event, "pid": pid}
        for pid, trace in enumerate(traces, 1)
        for event in trace["traceEvents"]
    ]
    return {"displayTimeUnit": "ms", "traceEvents": events}


def read(path: Path) -> Trace:
    """Returns the content of a `.json.gz`."""
    with gzip.open(path, "rt") as file:
        content: Trace = json.load(file)
    return content


def write(path: Path, trace: Trace) -> None:
    """Writes a trace as `.json.gz`; the same trace is always the same bytes."""
    text = json.dumps(trace, separators=(",", ":"))
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


class _Trips:
    """Which trip of its loops an event is in, as one event after the other is asked for."""

    def __init__(self, program: Program) -> None:
        self._times: dict[str, int] = {}
        for op, times in flatten(program):
            self._times[op.name] = self._times.get(op.name, 0) + times
        self._loop = {
            op.name: node
            for node in program
            if isinstance(node, ProgramLoop)
            for op, _ in flatten((node,))
        }
        self._seen: dict[str, int] = {}
        self._spans: dict[tuple[str, int], tuple[float, float]] = {}
        self._seconds: dict[str, dict[str, float]] = {}

    def next(self, event: Event) -> str:
        """Returns `12 of 39`, or nothing outside of loops."""
        name = event.op.name
        loop = self._loop.get(name)
        if loop is None or event.stream == "waiting":
            return ""
        self._seen[name] = self._seen.get(name, 0) + 1
        trip = -(-self._seen[name] * loop.trips // self._times[name])
        if event.stream == "compute":
            start_s, _ = self._spans.get((loop.name, trip), (event.start_s, 0.0))
            self._spans[loop.name, trip] = (start_s, _end(event))
            spent, direction = self._seconds.setdefault(loop.name, {}), _direction(event.op)
            spent[direction] = spent.get(direction, 0.0) + event.lasts_s
        return f"{trip} of {loop.trips}"

    def slices(self) -> list[Slice]:
        """Returns a slice for every trip of the outermost loops."""
        trips = {loop.name: loop.trips for loop in self._loop.values()}
        found = []
        for (name, trip), (start_s, end_s) in self._spans.items():
            spent = self._seconds[name]
            direction = max(spent, key=lambda direction: spent[direction])
            title = f"{direction} trip {trip} of {trips[name]}".strip()
            found.append(_complete(title, "loops", start_s, end_s - start_s, {"hlo": name}))
        return found


def _facts(op: Operation, cluster: Cluster) -> dict[str, Any]:
    """Returns what is the same whenever an operation runs."""
    about: dict[str, Any] = {
        "direction": label(op.op_name, op.kind).direction,
        "op_name": op.op_name,
        "hlo": op.name,
    }
    if op.collective:
        about["algorithm"] = collective_price(op.collective, cluster).algorithm
    elif not op.kind.startswith(("collective", "host-copy")):
        about["bound"] = price(op, cluster.chip).bound
    return about


def _slice(event: Event, trip: str, facts: Mapping[str, Any], chip: Chip) -> Slice:
    op = event.op
    where = label(op.op_name, op.kind)
    about = {**facts, "trip": trip}
    part, thread = where.part, event.stream
    if op.collective:
        sent = op.collective
        thread = "communication"
        name = f"{sent.kind} over {sent.axes}, {units.show(sent.bytes, 'B')}"
        about |= {"bytes": sent.bytes, "devices": len(sent.group)}
        if event.stream == "waiting":
            part, thread, name = "waiting", "compute", f"{EXPOSED} {sent.axes}"
        else:
            about["bytes_per_s"] = sent.bytes / event.lasts_s if event.lasts_s else None
    elif event.stream == "waiting":
        part, thread, name = "waiting", "compute", f"{EXPOSED} the host"
    else:
        name = f"{part} {op.kind}"
        about |= {"bytes": op.bytes, "bytes_per_s": op.bytes / event.lasts_s}
        if op.flops:
            reached = op.flops / event.lasts_s
            peak = chip.peak(PRECISIONS.get(op.dtype, "fp32"))
            about |= {"flops": op.flops, "tflops_per_s": reached / 1e12, "of_peak": reached / peak}
    about = {key: value for key, value in about.items() if value not in ("", None)}
    color = {"cname": COLORS[part]} if part in COLORS else {}
    return _complete(name, thread, event.start_s, event.lasts_s, about) | color


def _direction(op: Operation) -> str:
    return label(op.op_name, op.kind).direction


def _end(event: Event) -> float:
    return event.start_s + event.lasts_s


def _complete(
    name: str, thread: str, start_s: float, lasts_s: float, about: Mapping[str, Any]
) -> Slice:
    """Returns a slice, both ends rounded to 1 ns: neighbours touch and never overlap."""
    start_ns, end_ns = round(start_s * 1e9), round((start_s + lasts_s) * 1e9)
    return {
        "ph": "X",
        "tid": THREADS[thread],
        "ts": start_ns / 1000,
        "dur": (end_ns - start_ns) / 1000,
        "name": name,
        "args": dict(about),
    }


def _named(what: str, tid: int, name: str) -> Slice:
    return {"ph": "M", "tid": tid, "name": what, "args": {"name": name}}
