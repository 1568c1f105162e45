"""A bit that flips in the memory of one device, as radiation or a worn cell would do it."""

import ctypes

import jax


def flip_bit(array: jax.Array, device: jax.Device, index: int, bit: int) -> None:
    """Flips a bit of an array in place, in one device's memory and no other's.

    Args:
        array: a global array; other copies of the element stay as they are.
        device: a CPU device of this process.
        index: number of the element within the device's part, row by row.
        bit: number of the bit, from the lowest.

    Raises:
        ValueError: the device's memory is not the host's, the array has no part there, or its part
            is one memory with another device's.
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
