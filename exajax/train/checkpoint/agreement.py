"""What the processes of a job agree on outside of the step: words, not arrays.

They go through the service that joined the processes, not through the devices: a device's
collective has no time limit, and may not run from two threads at once.
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
"""Time that a process takes to end."""

_names = itertools.count()


class NotAgreedError(RuntimeError):
    """A process has not come in time, or the one that decides could not."""


class Agreement:
    """A place where the processes of this job agree.

    Every process makes its own, in the same order as all others.
    """

    def __init__(self) -> None:
        self._name = f"exajax/agreement-{next(_names)}"

    def on(
        self,
        topic: str,
        mine: Any,
        decide: Callable[[list[Any]], Any],
        limit_s: float = LIMIT_S,
    ) -> Any:
        """Returns on every process what the first one decides from what each has to say.

        Args:
            topic: what is to be decided; each may be decided on once.
            mine: what this process has to say, as JSON.
            decide: given what all processes say, in their order, returns the answer, as JSON. Only
                the first process calls it.
            limit_s: time that the others have to come after the first one, and it to decide.

        Raises:
            NotAgreedError: a process did not come in time, which names it; or the first one failed.
            Exception: what `decide` raised, on the first process.
        """
        if coordination.processes() == 1:
            return decide([mine])
        if coordination.process():
            self._set(f"{topic}/{coordination.process()}", mine)
            answer = self._get(f"{topic}/answer", 2 * limit_s + GRACE_S)
            if answer is None:
                raise NotAgreedError(f"process 0 has not decided on {topic} in time")
            if "problem" in answer[0]:
                raise NotAgreedError(answer[0]["problem"])
            return answer[0]["value"]
        try:
            value = decide(self._gather(topic, mine, limit_s))
        except BaseException as error:
            self._set(f"{topic}/answer", {"problem": str(error) or type(error).__name__})
            raise
        self._set(f"{topic}/answer", {"value": value})
        return value

    def last(self, topic: str, limit_s: float) -> None:
        """Lets all other processes go on at once, and the first one a moment after the last.

        Raises:
            NotAgreedError: a process did not come in time.
        """
        if coordination.process():
            self._set(f"{topic}/{coordination.process()}", None)
        elif coordination.processes() > 1:
            self._gather(topic, None, limit_s)
            time.sleep(MOMENT_S)

    def forget(self, topic: str) -> None:
        """Frees what was said on a topic, once no process can ask for it any more."""
        if coordination.processes() > 1 and not coordination.process():
            coordination.remove(f"{self._name}/{topic}")

    def _gather(self, topic: str, mine: Any, limit_s: float) -> list[Any]:
        """Returns what all processes say; the time limit is for all of them together."""
        deadline_s = time.monotonic() + limit_s
        said = [mine]
        absent = []
        for process in range(1, coordination.processes()):
            left_s = max(deadline_s - time.monotonic(), 0.001)
            word = self._get(f"{topic}/{process}", left_s)
            if word is None:
                absent.append(str(process))
            else:
                said += word
        if absent:
            raise NotAgreedError(
                f"process {', '.join(absent)} did not come to {topic} within {limit_s:.0f} s"
            )
        return said

    def _set(self, key: str, value: Any) -> None:
        coordination.put(f"{self._name}/{key}", json.dumps([value]))

    def _get(self, key: str, limit_s: float) -> list[Any] | None:
        """Waits for what a process says, and returns it in a list; None if it says nothing."""
        text = coordination.wait_for(f"{self._name}/{key}", limit_s)
        return None if text is None else list(json.loads(text))
