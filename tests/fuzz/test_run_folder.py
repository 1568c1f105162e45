"""Whatever a crash, a disk or a person makes of a run folder, reading it ends in a value."""

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exajax.errors import InputError
from exajax.files.reading import Malformed
from exajax.files.schema import decode_record
from exajax.job import goodput, run_folder, wall_time
from exajax.job.events import read_events
from exajax.job.runtime import json_text
from exajax.resilience.control import Control
from exajax.resilience.lease import Lease
from exajax.train.checkpoint import checksums
from exajax.train.checkpoint import folder as checkpoint_folder
from exajax.train.checkpoint.manifest import Manifest
from exajax.train.checkpoint.restoring import read_notes
from exajax.train.sinks import history
from tests.fuzz import EXAMPLES
from tests.fuzz.mutations import as_json, damaged, mutated

EVENTS: list[dict[str, Any]] = [
    {"time": 1e9, "attempt": 0, "host": 0, "event": "job", "job": "a", "pid": 1},
    {"time": 1e9 + 1, "attempt": 1, "host": 0, "event": "attempt", "members": [0], "mesh": "1x1"},
    {"time": 1e9 + 2, "attempt": 1, "host": 0, "event": "phase", "phase": "start", "step": 0},
    {"time": 1e9 + 3, "attempt": 1, "host": 0, "event": "phase", "phase": "step", "step": 1},
    {"time": 1e9 + 4, "attempt": 1, "host": 0, "event": "phase", "phase": "step", "step": 2},
    {
        "time": 1e9 + 5,
        "attempt": 1,
        "host": 0,
        "event": "checkpoint-saved",
        "tier": "shared",
        "step": 2,
        "seconds": 0.5,
        "stall_s": 0.1,
        "bytes": 100,
    },
    {"time": 1e9 + 6, "attempt": 1, "host": 0, "event": "worker-ended", "code": 0, "reason": ""},
]
RECORDS: list[dict[str, Any]] = [
    {"step": 1, "loss": 2.0, "grad_norm": 1.0, "data_wait_s": 0.1},
    {"step": 2, "loss": 1.5, "grad_norm": 1.0, "step_time_s": 0.2, "mfu": 0.1},
    {"step": 2, "validation_loss": 1.7},
    {"step": 3, "loss": None, "ids": [1, 2]},
]
MANIFEST: dict[str, Any] = {
    "step": 1,
    "arrays": {"params.w": {"shape": [2, 4], "dtype": "float32"}},
    "stack": "",
    "parts": 1,
    "mesh": {"data": 1},
    "versions": {"jax": "1"},
    "samples": 4,
    "seed": 0,
    "digests": {"params.w": "00"},
}
ABOUT: dict[str, Any] = {
    "recipe": {"model": {"name": "x"}, "interleave": 1},
    "data": {"sha256": "0"},
    "bad_steps": {"count": 0, "skipped": [], "losses": [1.0]},
}
ATTEMPT: dict[str, Any] = {
    "number": 1,
    "epoch": 1,
    "job": "a",
    "state": "run",
    "members": [0],
    "coordinator": "h:1",
    "mesh": "1x1",
    "micro_batch": None,
    "fruitless": 0,
    "newest": -1,
    "code": None,
}
HOLDER: dict[str, Any] = {
    "epoch": 1,
    "job": "a",
    "host": 0,
    "machine": "m",
    "pid": 1,
    "started": "1",
    "beat": 3,
}
FILES: dict[str, Any] = {
    "events/0-worker.jsonl": EVENTS,
    "metrics.jsonl": RECORDS,
    "samples.jsonl": RECORDS,
    "run.json": {"job": {"recipe": {}}, "train": {"losses": [1.0]}},
    "checkpoints/1/manifest.json": MANIFEST,
    "checkpoints/1/about.json": ABOUT,
    "checkpoints/1/checksums.json": {
        "algorithm": "crc32",
        "files": {"manifest.json": [2, "00000000"]},
        "crc32": "0",
    },
    ".job/attempt.json": ATTEMPT,
    ".job/lease-000001": HOLDER,
}


def content_of(name: str, value: Any) -> bytes:
    if name.endswith(".jsonl") and isinstance(value, list):
        return b"".join(as_json(line) + b"\n" for line in value)
    return as_json(value)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, bytes]:
    name = draw(st.sampled_from(sorted(FILES)))
    content = content_of(name, draw(mutated(FILES[name])))
    return name, draw(damaged(content)) if draw(st.booleans()) else content


def read_all(run_dir: Path) -> None:
    """Reads all that a command reads of a run folder."""
    problems: list[str] = []
    found = goodput.goodput_of_run(run_dir, problems.append)
    assert all(math.isfinite(x) for x in found.to_json().values() if x is not None)
    assert math.isfinite(wall_time.save_time_s(read_events(run_dir)))
    found.describe()
    for name in ("metrics.jsonl", "samples.jsonl"):
        json_text(history.read(run_dir / name, problems.append))
        history.cut(run_dir / name, 2)
        assert all(record["step"] <= 2 for record in history.read(run_dir / name))
    assert all("\n" not in problem for problem in problems)
    with contextlib.suppress(InputError):
        run_folder.read(run_dir)
    checkpoint = run_dir / "checkpoints" / "1"
    with contextlib.suppress(ValueError):
        checksums.read(checkpoint)
    with contextlib.suppress(checksums.DamagedError):
        read_notes(checkpoint, 1)
    checkpoint_folder.verify(run_dir / "checkpoints")
    control = Control(run_dir)
    control.attempt()
    lease = Lease(control.folder, "b", 1)
    lease.holder()
    lease.hold()


def write(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@settings(max_examples=2 * EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files())
def test_a_damaged_run_folder_is_read(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[str, bytes]
) -> None:
    folder = tmp_path_factory.mktemp("run")
    for name, value in FILES.items():
        write(folder, name, content_of(name, value))
    write(folder, *file)
    read_all(folder)


def test_what_is_whole_is_read_beside_what_is_not(tmp_path: Path) -> None:
    lines = [as_json(event) + b"\n" for event in EVENTS]
    lines.insert(3, b"[" * 100_000 + b"\n")
    lines.insert(5, b'{"time": "now"}\n')
    for time_s in (1e9 / 10, 1e11):  # a digit less, and a time to come
        lines.append(as_json(EVENTS[0] | {"time": time_s}) + b"\n")
    lines.append(b'{"time": 1, "att')  # a kill in the middle of a write
    write(tmp_path, "events/0-worker.jsonl", b"".join(lines))
    problems: list[str] = []
    assert len(read_events(tmp_path, problems.append)) == len(EVENTS)
    (problem,) = problems
    assert "4 lines are no events and are left out, the first is line 4" in problem


def test_history_behind_a_step_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, path.name, content_of(path.name, RECORDS) + b'{"step": 4, "lo')
    kept = history.cut(path, 2)
    assert kept == [RECORDS[2], RECORDS[1]]
    assert history.read(path) == RECORDS[:3]
    assert history.cut(path, 0) == []
    assert path.read_bytes() == b""


def test_steps_are_named_as_they_are_written(tmp_path: Path) -> None:
    for name in ("7", "12", "007", "٣", "9" * 200, "1e3", "-1", "damaged"):
        (tmp_path / name).mkdir()
    assert checkpoint_folder.steps_in(tmp_path) == [12, 7]


def test_a_manifest_with_a_wrong_field_names_it() -> None:
    for path, value in ((("step",), -1), (("arrays", "params.w", "shape"), "x"), (("mesh",), 3)):
        content = dict(MANIFEST)
        content["arrays"] = {"params.w": dict(MANIFEST["arrays"]["params.w"])}
        at = content
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        with pytest.raises(Malformed) as raised:
            decode_record(as_json(content), Manifest)
        assert raised.value.where.startswith(path[0])


def test_a_copy_stands_in_for_a_damaged_report(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = {"recipe": {"seed": 1}}
    folder = run_folder.RunFolder.open(tmp_path / "run", job, lock=False)
    folder.write(train={"step": 3})
    for content in (b'{"job": ', b"\0" * 100, b"[]", b'{"job": 3}', None):
        report = folder.path / "run.json"
        report.unlink() if content is None else report.write_bytes(content)
        assert (run_folder.read(folder.path) or {})["train"] == {"step": 3}
        assert "its copy .run.json.copy is used" in caplog.text
        caplog.clear()
    (folder.path / ".run.json.copy").write_bytes(b"")
    with pytest.raises(InputError, match=r"is damaged: .*restore it, or give another folder"):
        run_folder.read(folder.path)


def test_a_record_whose_step_does_not_fit_is_left_out_and_no_other(tmp_path: Path) -> None:
    lines = [as_json({"step": step, "loss": 1.0}) + b"\n" for step in (1, 2**31, 2, 2, 3, 0, 4)]
    write(tmp_path, "metrics.jsonl", b"".join(lines))
    problems: list[str] = []
    found = history.read(tmp_path / "metrics.jsonl", problems.append)
    assert [record["step"] for record in found] == [1, 2, 2, 3, 4]
    (problem,) = problems
    assert "2 lines are no records and are left out, the first is line 2" in problem
