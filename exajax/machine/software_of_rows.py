"""Which software profile a published row ran with, and what committed measurements validate.

The row's own `software` column says it, or the name of its source does
(`SoftwareProfile.sources`). Where neither does, programs of JAX are priced as our own, and others
as `DEFAULT`.
"""

import csv
import functools
from pathlib import Path

from exajax.errors import nearest
from exajax.files.reading import Malformed, shown
from exajax.machine import software
from exajax.machine.published_columns import Columns, positive_number
from exajax.machine.software import AS_MEASURED, SoftwareProfile

TABLES = Path(__file__).parents[1] / "meshes" / "published"
"""Published measurements that come with the project."""

OURS = ("JAX", "MaxText", "Pax", "Flax", "Levanter")
"""Words in the names of sources whose programs XLA compiles, as it does ours."""

DEFAULT = "nemo-2024"
"""The profile of sources that no profile names: most of what is published runs on PyTorch.

It was chosen among the profiles by six such sources. They are not held out for this choice, though
none of its factors was fitted on them. Mean error of their step times, priced by measured kernels
alone and by this profile: swiss-ai 102 and 2.5%, fms-fsdp 26 and 12%, InternEvo 22 and 20%,
llm-foundry 19 and 17%; but Megatron-LLaMA 11 and 31%, nanoGPT 1 and 13%."""


def check(values: Columns) -> None:
    """Raises `Malformed` if a row names a profile that there is not."""
    name = _named(values)
    if name and name not in (known := [AS_MEASURED.name, *software.names()]):
        raise Malformed("software", f"is {shown(name)}", nearest(name[:99], known))


def profile_of(source: str, named: str = "", zero: int | None = None) -> SoftwareProfile:
    """Returns the software profile of a row.

    Args:
        source: where it was published.
        named: its `software` column, empty where it has none.
        zero: the level of ZeRO that it ran with.
    """
    if named:
        return AS_MEASURED if named == AS_MEASURED.name else software.load(named, "software")
    found = software.of_source(source, zero)
    if found is AS_MEASURED and not any(word in source for word in OURS):
        return software.load(DEFAULT, "software")
    return found


def assumed(source: str, named: str) -> str:
    """Returns what is assumed of a row's software in words, empty where it or its source says."""
    if named or software.of_source(source) is not AS_MEASURED:
        return ""
    return f"software = {profile_of(source).name} (default: no profile names this source)"


def unvalidated(chip: str, software: str) -> tuple[str, ...]:
    """Returns which of a chip and a profile no step time that comes with the project is of."""
    chips, profiles = _measured()
    missing = [f"chip {chip}"] if chip not in chips else []
    return (*missing, *([f"software {software}"] if software not in profiles else []))


def _named(values: Columns) -> str:
    return (values.get("software") or "").strip()


@functools.cache
def _measured() -> tuple[frozenset[str], frozenset[str]]:
    """Returns the chips and the profiles that committed step times are of."""
    chips, profiles = set(), set()
    for path in sorted(TABLES.glob("*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if positive_number(row, "derived_iter_s"):
                    zero = int(row["zero"]) if row["zero"].isdecimal() else None
                    chips.add(row["chip"])
                    profiles.add(profile_of(row["source"], _named(row), zero).name)
    return frozenset(chips), frozenset(profiles)
