"""exajax: train on a JAX mesh, and predict the same step on machines you do not have.

workload = exajax.Workload(build, loss, batch, optimizer)
exajax.fit(exajax.train_step(workload, "2x2"), batches, steps=100)       # measured
exajax.predict(workload, "128x8", "dgx-h100")                            # simulated
"""

from exajax.job import accelerators

TYPE_CHECKING = False  # importing `typing` would take as long as the rest of this file
if TYPE_CHECKING:
    from exajax.api import predict as predict
    from exajax.api import train_step as train_step
    from exajax.errors import InputError as InputError
    from exajax.machine.cluster import load_cluster as load_cluster
    from exajax.recipe.recipe import Recipe as Recipe
    from exajax.simulate.prediction import Prediction as Prediction
    from exajax.spmd.mesh import MeshSpec as MeshSpec
    from exajax.spmd.step import TrainState as TrainState
    from exajax.spmd.step import TrainStep as TrainStep
    from exajax.spmd.weighted import Weighted as Weighted
    from exajax.spmd.weighted import weighted_mean as weighted_mean
    from exajax.spmd.workload import Stages as Stages
    from exajax.spmd.workload import Workload as Workload
    from exajax.train.checkpoint.checkpointing import Checkpointing as Checkpointing
    from exajax.train.health.bad_steps import Policy as Policy
    from exajax.train.hooks import Evaluation as Evaluation
    from exajax.train.hooks import Every as Every
    from exajax.train.hooks import Hooks as Hooks
    from exajax.train.loop import Fit as Fit
    from exajax.train.loop import fit as fit
    from exajax.train.profiling import Profile as Profile
    from exajax.train.rates import Mfu as Mfu

_MODULE_OF = {
    "Checkpointing": "train.checkpoint.checkpointing",
    "Evaluation": "train.hooks",
    "Every": "train.hooks",
    "Fit": "train.loop",
    "Hooks": "train.hooks",
    "InputError": "errors",
    "MeshSpec": "spmd.mesh",
    "Mfu": "train.rates",
    "Policy": "train.health.bad_steps",
    "Prediction": "simulate.prediction",
    "Profile": "train.profiling",
    "Recipe": "recipe.recipe",
    "TrainState": "spmd.step",
    "TrainStep": "spmd.step",
    "Stages": "spmd.workload",
    "Weighted": "spmd.weighted",
    "Workload": "spmd.workload",
    "fit": "train.loop",
    "load_cluster": "machine.cluster",
    "predict": "api",
    "train_step": "api",
    "weighted_mean": "spmd.weighted",
}

__all__ = [*_MODULE_OF]
__version__ = "0.1.0"

accelerators.allow_compiling_ahead()


def __getattr__(name: str) -> object:
    """Imports a public name on first use, so that commands can start without importing JAX."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'exajax' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"exajax.{_MODULE_OF[name]}"), name)
