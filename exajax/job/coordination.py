"""Communication between the processes of a job outside of the step: key-value store, barriers.

The key-value store is the coordination service that `jax.distributed.initialize` starts. It has no
public interface: `jax.distributed` offers `initialize`, `shutdown` and `is_initialized`, in 0.10.2
as in 0.12.0. The public alternatives do not fit:

- `multihost_utils.process_allgather`, `broadcast_one_to_all` and `sync_global_devices` are
  collectives of the devices: they have no time limit, and must not run in the thread of a save
  while the main thread runs a step.
- `orbax.checkpoint.multihost` has a barrier with a time limit, but sends no data.
- Files in the run folder appear late on network file systems (NFS caches a folder's attributes for
  up to a minute), and the processes exchange messages before they know that they share a folder.

Relied on, in jax 0.10.2 to 0.12.0: `jax._src.distributed.global_state` with its fields
`process_id`, `num_processes`, `client` and `preemption_sync_manager`; the client's `key_value_set`,
`blocking_key_value_get` and `key_value_delete`; the status `DEADLINE_EXCEEDED` in the error of a
wait that times out. A release that moves them fails with an `AttributeError` at the first save of
several processes, or with the service's own error where a process does not arrive in time.
`multihost_utils` is public, but experimental. `tests/job/test_coordination.py` tests all of it.
"""

from typing import Any

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils


def process() -> int:
    """The rank of this process. `jax.process_index` would initialize the devices."""
    return int(distributed.global_state.process_id)


def processes() -> int:
    """The number of processes of the job, without initializing the devices."""
    return int(distributed.global_state.num_processes)


def put(key: str, text: str) -> None:
    """Stores a text under a key, for all processes; the key must be new."""
    _client().key_value_set(key, text)


def wait_for(key: str, limit_s: float) -> str | None:
    """Waits for the text of a key; None if no process has stored it within `limit_s` seconds."""
    try:
        return str(_client().blocking_key_value_get(key, int(1000 * limit_s) + 1))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            return None
        raise


def remove(folder: str) -> None:
    """Deletes all keys that begin with `folder/`."""
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
    """Whether all processes end after this step. Every process must ask after every step."""
    return bool(multihost_utils.reached_preemption_sync_point(step))


def gather(array: Any) -> np.ndarray:
    """The arrays of all processes, [processes, ...]: a collective of their devices."""
    return np.asarray(multihost_utils.process_allgather(array))


def barrier(name: str) -> None:
    """Waits for every process: a collective of their devices, without a time limit."""
    multihost_utils.sync_global_devices(name)


def _client() -> Any:
    client = distributed.global_state.client
    assert client  # there is one wherever there are several processes
    return client
