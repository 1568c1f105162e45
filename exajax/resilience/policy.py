"""Limits and delays by which the leader of a job decides."""

from dataclasses import dataclass

from exajax.resilience.elastic import ElasticLayouts


@dataclass(frozen=True)
class LeaderPolicy:
    """Limits and delays by which the leader decides.

    Attributes:
        restarts: attempts in a row that may fail without a newer checkpoint; 0: no restart at all.
        max_backoff_s: longest delay between two such attempts; the first restart is immediate, then
            the delays are 1 s, 2 s, 4 s, ...
        host_wait_s: seconds to wait for a missing host before going on without it.
        layouts: the layouts of the job on fewer hosts.
        silent_s: seconds without a heartbeat after which a host is lost.
        settle_s: seconds from the first process that ends to the verdict on the culprit, since
            others that ended at the same moment are reported later.
        refuse_s: seconds that the other hosts have to refuse an input that one host refused.
    """

    restarts: int
    max_backoff_s: float
    host_wait_s: float
    layouts: ElasticLayouts
    silent_s: float
    settle_s: float
    refuse_s: float = 5.0
