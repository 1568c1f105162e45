"""A bit flip in the memory of one device, as radiation or a worn cell causes it."""

import ctypes

import jax


def flip_bit(array: jax.Array, device: jax.Device, index: int, bit: int) -> None:
    """Flips a bit of an array in place, in the memory of one device only.

    Args:
        array: a global array; replicas of the element on other devices stay as they are.
        device: a CPU device of this process.
        index: flat index of the element within the device's shard.
        bit: number of the bit, from the lowest.

    Raises:
        ValueError: the device is no CPU device, holds no shard of the array, or shares the memory
            of its shard with another device.
    """
    if device.platform != "cpu":
        raise ValueError(f"the memory of {device} is not the host's: bits flip on CPU devices only")
    parts = {part.device: part.data for part in array.addressable_shards}
    if device not in parts:
        raise ValueError(f"{device} holds no part of the array here")
    part = parts[device]
    address = part.unsafe_buffer_pointer()
    if any(other.unsafe_buffer_pointer() == address for d, other in parts.items() if d != device):
        raise ValueError(f"{device} shares the memory of the array with another device")
    width = part.dtype.itemsize
    if not (0 <= index < part.size and 0 <= bit < 8 * width):
        raise ValueError(f"no bit {bit} of element {index} in {part.size} of {width} bytes")
    byte = ctypes.c_uint8.from_address(address + index * width + bit // 8)
    byte.value ^= 1 << bit % 8
