"""Whether accelerators are attached here, as the kernel's device files tell; without any import."""

import os


def attached() -> bool:
    """Returns whether this machine has device files of NVIDIA or AMD GPUs, or of TPUs."""
    return any(map(_is_accelerator, _names("/dev"))) or any(
        name.isdecimal() for name in _names("/dev/vfio")
    )


def allow_compiling_ahead() -> None:
    """Lets JAX load its CUDA compiler where no CUDA library is: compiling needs none.

    Where there is a GPU the check of the libraries' versions stays. It is made when JAX first looks
    for devices, so this is done when exajax is imported.
    """
    if not attached():
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _is_accelerator(name: str) -> bool:
    number = name.removeprefix("nvidia")
    return name == "kfd" or name.startswith("accel") or (number != name and number[:1].isdecimal())
