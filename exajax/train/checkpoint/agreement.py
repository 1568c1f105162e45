"""Agreement between the processes of a job on small JSON values, outside of the step.

It uses the coordination service rather than collectives of the devices, which have no time limit
and must not run in two threads at once.
"""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

from exajax.job import coordination

LIMIT_S = 600.0
GRACE_S = 30.0

MOMENT_S = 1.0
"""Seconds that a process takes to end."""

_names = itertools.count()


class NotAgreedError(RuntimeError):
    """A process did not answer in time, or the first process failed to decide."""


class Agreement:
    """A series of decisions that all processes of this job make together.

    Every process creates its own objects, in the same order as all others.
    """

    def __init__(self) -> None:
        self._name = f"exajax/agreement-{next(_names)}"

    def on(
        self,
        topic: str,
        report: Any,
        decide: Callable[[list[Any]], Any],
        limit_s: float = LIMIT_S,
    ) -> Any:
        """The decision of the first process on the reports of all, returned on every process.

        Args:
            topic: name of the decision; every name is used once.
            report: this process's report, as JSON.
            decide: makes the decision, as JSON, from all reports in the order of ranks; called on
                the first process only.
            limit_s: seconds that the others have to report after the first one, and it to decide.

        Raises:
            NotAgreedError: a process, which is named, did not report in time; or the first failed.
            Exception: what `decide` raised, on the first process.
        """
        if coordination.processes() == 1:
            return decide([report])
        if coordination.process():
            self._set(f"{topic}/{coordination.process()}", report)
            answer = self._get(f"{topic}/answer", 2 * limit_s + GRACE_S)
            if answer is None:
                raise NotAgreedError(f"process 0 has not decided on {topic} in time")
            if "problem" in answer[0]:
                raise NotAgreedError(answer[0]["problem"])
            return answer[0]["value"]
        try:
            value = decide(self._gather(topic, report, limit_s))
        except BaseException as error:
            self._set(f"{topic}/answer", {"problem": str(error) or type(error).__name__})
            raise
        self._set(f"{topic}/answer", {"value": value})
        return value

    def last(self, topic: str, limit_s: float) -> None:
        """Holds the first process until all others have come here, and a moment longer.

        Raises:
            NotAgreedError: a process did not come in time.
        """
        if coordination.process():
            self._set(f"{topic}/{coordination.process()}", None)
        elif coordination.processes() > 1:
            self._gather(topic, None, limit_s)
            time.sleep(MOMENT_S)

    def forget(self, topic: str) -> None:
        """Deletes the reports on a topic, once no process can ask for them any more."""
        if coordination.processes() > 1 and not coordination.process():
            coordination.remove(f"{self._name}/{topic}")

    def _gather(self, topic: str, report: Any, limit_s: float) -> list[Any]:
        """The reports of all processes; the time limit is for all of them together."""
        deadline_s = time.monotonic() + limit_s
        reports = [report]
        absent = []
        for process in range(1, coordination.processes()):
            left_s = max(deadline_s - time.monotonic(), 0.001)
            received = self._get(f"{topic}/{process}", left_s)
            if received is None:
                absent.append(str(process))
            else:
                reports += received
        if absent:
            raise NotAgreedError(
                f"process {', '.join(absent)} did not come to {topic} within {limit_s:.0f} s"
            )
        return reports

    def _set(self, key: str, value: Any) -> None:
        coordination.put(f"{self._name}/{key}", json.dumps([value]))

    def _get(self, key: str, limit_s: float) -> list[Any] | None:
        """Waits for a value and returns it in a list; None if it does not come in time."""
        text = coordination.wait_for(f"{self._name}/{key}", limit_s)
        return None if text is None else list(json.loads(text))
