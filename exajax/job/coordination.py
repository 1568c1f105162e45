"""What the processes of a job do together through JAX, outside of the step.

Words go through the coordination service that `jax.distributed.initialize` starts, a store of texts
by key. It has no public face: `jax.distributed` offers `initialize`, `shutdown` and
`is_initialized`, in 0.10.2 as in 0.12.0. What is public does another job:

- `multihost_utils.process_allgather`, `broadcast_one_to_all` and `sync_global_devices` are
  collectives of the devices: they have no time limit, and may not run in the thread of a save while
  the main thread runs a step.
- `orbax.checkpoint.multihost` has a barrier with a time limit, and sends no data.
- Files in the run folder are seen late on network file systems (NFS keeps what it knows of a folder
  for up to a minute), and the processes agree before they know that they share one.

Relied on, in jax 0.10.2 to 0.12.0: `jax._src.distributed.global_state` with its fields
`process_id`, `num_processes`, `client` and `preemption_sync_manager`; the client's `key_value_set`,
`blocking_key_value_get` and `key_value_delete`; the status `DEADLINE_EXCEEDED` in the error of a
wait that ends without a word. A release that moves them fails with an `AttributeError` at the first
save of several processes, or with the service's own error where a process does not come in time.
`multihost_utils` is public, and experimental. `tests/job/test_coordination.py` holds all of it.
"""

from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils


def process() -> int:
    """Returns the number of this process. `jax.process_index` would start the devices."""
    return int(distributed.global_state.process_id)


def processes() -> int:
    """Returns how many processes the job has, without starting the devices."""
    return int(distributed.global_state.num_processes)


def put(key: str, text: str) -> None:
    """Gives all processes a text under a key that has none yet."""
    _client().key_value_set(key, text)


def wait_for(key: str, limit_s: float) -> str | None:
    """Returns the text of a key once it has one; None if it has none in time."""
    try:
        return str(_client().blocking_key_value_get(key, int(1000 * limit_s) + 1))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            return None
        raise


def remove(folder: str) -> None:
    """Frees the texts of all keys that begin with `folder/`."""
    _client().key_value_delete(f"{folder}/")


def leave_sigterm_alone() -> None:
    """Keeps JAX from catching SIGTERM when the processes of the job are joined."""
    jax.config.update("jax_enable_preemption_service", False)


def catch_sigterm() -> None:
    """Lets JAX catch SIGTERM on every process, and agree on the step that all end after."""
    if distributed.global_state.preemption_sync_manager is None:
        jax.config.update("jax_enable_preemption_service", True)
        distributed.global_state.initialize_preemption_sync_manager()


def sigterm_ends_at(step: int) -> bool:
    """Returns whether all processes end after this step. Every process asks after every step."""
    return bool(multihost_utils.reached_preemption_sync_point(step))


def gather(mine: Any) -> np.ndarray:
    """Returns the arrays of all processes, [processes, ...]: a collective of their devices."""
    return np.asarray(multihost_utils.process_allgather(mine))


def meet(place: str) -> None:
    """Waits until every process is here: a collective of their devices, without a time limit."""
    multihost_utils.sync_global_devices(place)


def _client() -> Any:
    client = distributed.global_state.client
    assert client  # there is one wherever there are several processes
    return client
