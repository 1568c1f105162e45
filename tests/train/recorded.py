"""What a run under test leaves: events in a log, metrics in loggers."""

import exajax


class Recorded(exajax.Hooks):
    """Hands on events and metrics.

    Args:
        events: an `EventLog` where events go, None for nowhere.
        loggers: where metrics go.
        before_commit: called with the step of a checkpoint before it counts.
    """

    def __init__(self, events=None, loggers=(), before_commit=lambda step: None):
        self._events, self._loggers, self._before_commit = events, loggers, before_commit

    def event(self, name, **facts):
        if self._events:
            self._events.write(name, **facts)

    def loggers(self, resumed_from):
        return self._loggers

    def before_commit(self, step):
        self._before_commit(step)
