"""The history of a run: files of one JSON object a line, each with the step that it is of.

Steps never fall from line to line, so that going back to an earlier step is to cut the file's tail
off, and reading where a run stands is to read the last lines: neither takes longer as a run grows.
"""

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict


@with_config(ConfigDict(strict=True, extra="allow", allow_inf_nan=False))
class _Values(TypedDict, total=False):
    """What a record may have of its step; loggers may add more. A loss is None where it was NaN."""

    loss: float | None
    grad_norm: float | None
    learning_rate: float
    schedule_steps: int
    validation_loss: float | None
    validation_accuracy: float | None
    step_time_s: Annotated[float, Field(gt=0)]
    data_wait_s: float
    samples_per_s: float
    tokens_per_s: float
    mfu: float
    program: str
    ids: list[int]


class StepRecord(_Values):
    """A line of `metrics.jsonl` or `samples.jsonl`: its step, and `_Values`."""

    step: Annotated[int, Field(ge=0, lt=2**63)]


_RECORD = TypeAdapter(StepRecord)


def read(path: Path, damaged: Callable[[str], None] = lambda problem: None) -> list[dict[str, Any]]:
    """The records of a file, none if there is no file.

    Args:
        path: the file.
        damaged: called with a line of text if some lines are no records, or of a step that does
            not fit those beside them; they are left out. A last line that a crash has cut short is
            left out silently.
    """
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
    problems = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                record = _parsed(line)
                if record is not None:
                    # Steps never fall: of two that do, the one that fits no other is damaged.
                    if records and records[-1]["step"] > record["step"]:
                        if len(records) > 1 and records[-2]["step"] > record["step"]:
                            problems.append(number)
                            continue
                        records.pop()
                        problems.append(numbers.pop())
                    records.append(record)
                    numbers.append(number)
                elif line.endswith(b"\n"):
                    problems.append(number)
    except FileNotFoundError:
        return []
    except OSError as error:
        damaged(f"{path} cannot be read: {error.strerror}")
    if problems:
        damaged(
            f"{path}: {len(problems)} lines are no records and are left out, the first is line "
            f"{min(problems)}"
        )
    return records


def cut(path: Path, step: int) -> list[dict[str, Any]]:
    """Removes the records of later steps, and a truncated line at the end.

    Returns:
        The records of the step itself.
    """
    kept: list[dict[str, Any]] = []
    end = None
    if not path.exists() or not path.stat().st_size:
        return kept
    with path.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for line_end, line in _from_the_end(content):
                record = _parsed(line) if line.endswith(b"\n") else None
                if record is None or record["step"] > step:
                    continue
                end = line_end if end is None else end
                if record["step"] < step:
                    break
                kept.append(record)
        os.ftruncate(file.fileno(), end or 0)
    return kept


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        return dict(_RECORD.validate_json(line))
    except ValueError:
        return None


def _from_the_end(content: mmap.mmap) -> Iterator[tuple[int, bytes]]:
    """Yields the lines of a file, the last one first, each with the place where it ends."""
    end = len(content)
    while end:
        begin = content.rfind(b"\n", 0, end - 1) + 1
        yield end, content[begin:end]
        end = begin
