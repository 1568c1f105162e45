"""Whether accelerators are attached, from the kernel's device files alone: no driver is loaded."""

import os


def are_attached() -> bool:
    """Whether this machine has device files of NVIDIA or AMD GPUs, or of TPUs."""
    return any(map(_is_accelerator, _names("/dev"))) or any(
        name.isdecimal() for name in _names("/dev/vfio")
    )


def allow_compiling_ahead() -> None:
    """Skips JAX's check of the CUDA libraries on machines without a GPU: compiling needs none.

    JAX makes the check when it first looks for devices, so that this runs when exajax is imported.
    With a GPU attached the check stays.
    """
    if not are_attached():
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _is_accelerator(name: str) -> bool:
    number = name.removeprefix("nvidia")
    return name == "kfd" or name.startswith("accel") or (number != name and number[:1].isdecimal())
