"""Described devices: devices of a machine that need not be attached, to compile for.

Relied on, in jax 0.10.2 to 0.12.0: `jax.experimental.topologies.get_topology_desc` takes for CUDA a
`topology` of slices x hosts x GPUs of a host, and a `target_config`, the text of XLA's
`GpuTargetConfigProto`. `topologies` is public and experimental, the proto XLA's own. A release that
changes either fails at the first prediction: XLA names the field that it does not know
(`tests/program/test_described_devices.py`).
"""

import contextlib
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from exajax.errors import InputError
from exajax.machine.chip import Chip
from exajax.machine.cluster import Cluster

DRIVER, RUNTIME, CUDNN = "13.0.0", "12.8.0", (9, 10, 0)
"""Versions of NVIDIA's software that programs are compiled for without a device (openxla/xla,
target_config/specs). Without them, the compiler rejects fp8 and Triton kernels."""


def described_devices(cluster: Cluster, count: int) -> Sequence[jax.Device]:
    """Devices of a cluster to compile for, node by node; of a CPU cluster, attached CPU devices.

    Args:
        cluster: the machine.
        count: number of devices.

    Raises:
        InputError: JAX's CUDA compiler cannot be loaded, or JAX has started with fewer CPU devices.
    """
    if cluster.chip.platform == "cpu":
        attached = _cpu_devices(count)
        if len(attached) < count:
            raise InputError(
                f"cluster {cluster.name}",
                f"JAX has started with {len(attached)} CPU devices and {count} are needed",
                f"call it first, or set jax_num_cpu_devices to {count} before JAX starts",
            )
        return attached[:count]
    per_node = min(count, cluster.devices_per_node)
    config = target_config(cluster.chip)
    try:
        topology = topologies.get_topology_desc(
            platform="cuda",
            target_config=config,
            topology=f"1x{count // per_node}x{per_node}",
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(
            "ahead-of-time compilation",
            f"JAX's CUDA compiler is not usable ({error})",
            "pip install 'exajax[plan]'",
        ) from error
    return topology.devices


def _cpu_devices(count: int) -> Sequence[jax.Device]:
    with contextlib.suppress(RuntimeError):  # JAX has started, and the number is fixed
        jax.config.update("jax_num_cpu_devices", count)
    return jax.devices("cpu")


def target_config(chip: Chip) -> str:
    """A chip as XLA's `GpuTargetConfigProto` in text form.

    For a chip with a proxy, the processor is the proxy's and the memory the chip's own.
    """
    facts = chip.xla_target
    major, minor = facts["compute_capability"]
    feature = "ACCELERATED_FEATURES" if major >= 9 else "NONE"
    return f"""
gpu_device_info {{
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {facts["shared_memory_per_block_optin"]}
  shared_memory_per_core: {facts["shared_memory_per_core"]}
  core_count: {facts["core_count"]}
  fpus_per_core: {facts["fpus_per_core"]}
  clock_rate_ghz: {facts["clock_rate_ghz"]}
  l2_cache_size: {facts["l2_cache_size"]}
  memory_bandwidth: {chip.memory_bandwidth:.0f}
  device_memory_size: {chip.memory_bytes:.0f}
  pcie_bandwidth: {facts["pcie_bandwidth"]}
  device_address_bits: 64
  ecc_enabled: true
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {feature} }}
  device_interconnect_info {{ active_links: {facts["active_links"]} }}
  device_vendor: "NVIDIA Corporation"
  name: "{facts["name"]}"
  platform_version: "Compute Capability {major}.{minor}"
  driver_version: "{DRIVER}"
  runtime_version: "{RUNTIME}"
  compile_time_toolkit_version: "{RUNTIME}"
  dnn_version: "{CUDNN[0]}.{CUDNN[1]}.{CUDNN[2]}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} patch: {CUDNN[2]} }}
device_description_str: "{facts["name"]}"
"""
