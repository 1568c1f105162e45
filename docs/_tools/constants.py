"""Constants of the models that predict, as they stand in the code or in the machine files."""

from exajax.machine.cluster import load_cluster
from exajax.simulate import timeline
from exajax.simulate import variability as spread
from exajax.simulate.formulas.prediction import fits_margin as margin_of_formulas
from exajax.spmd.compiler_options import MEMORY_FRACTION
from exajax.validate.step_times import NULL_EFFICIENCY


def overlap_slowdown() -> str:
    """How much longer compute takes while a collective runs."""
    return f"{100 * timeline.OVERLAP_SLOWDOWN['cuda']:.1f}%"


def memory_fraction() -> str:
    """Share of a GPU's memory that a run takes for its arrays."""
    return f"{100 * MEMORY_FRACTION['cuda']:.0f}%"


def fits_margin() -> str:
    """How much more memory than the formulas say has to be there."""
    return f"{100 * margin_of_formulas():.0f}%"


def null_efficiency() -> str:
    """The one efficiency of the null model."""
    return f"{NULL_EFFICIENCY}"


def draws() -> str:
    """From how many draws percentiles are."""
    return f"{spread.DRAWS:,}"


def variability() -> str:
    """How much devices and networks are assumed to differ, and from where that is known."""
    machine = load_cluster("dgx-h100")
    sigma = machine.variability
    return (
        f"On {machine.title} it is {100 * sigma.compute:.1f}% for compute "
        f"(*published*: {machine.sources['variability.compute']}) and {100 * sigma.network:.1f}% for the "
        f"network (*published*: {machine.sources['variability.network']})"
    )
