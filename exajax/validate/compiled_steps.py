"""Step times of published rows by the compiled engine."""

import dataclasses
from collections.abc import Callable

from exajax import units
from exajax.errors import InputError
from exajax.machine.cluster import Cluster
from exajax.program import compiled_recipe
from exajax.program.compiled import Compiled
from exajax.recipe.recipe import Recipe
from exajax.simulate.prediction import predict_step


def pricer(report: Callable[[str], None]) -> Callable[[Recipe, Cluster], float]:
    """A function that predicts step times with the compiled engine, compiling each program once.

    It raises an `InputError` for a recipe that exajax cannot train, such as one with uneven stages.

    Args:
        report: called with a description of every program before it is compiled or read.
    """
    programs: dict[tuple[str, str], Compiled] = {}

    def step_s(recipe: Recipe, machine: Cluster) -> float:
        recipe = trainable(recipe)
        machine.check(recipe.mesh.devices, recipe.precision)
        key = (recipe.digest, machine.digest)
        if key not in programs:
            size = units.show(recipe.model.parameters, "")
            report(f"{size} parameters on {recipe.mesh} of {machine.name}")
            programs[key] = _load_or_compile(recipe, machine)
        prediction = predict_step(
            programs[key],
            machine,
            recipe.precision,
            samples=recipe.global_batch,
            tokens_per_sample=recipe.seq,
            model_flops=recipe.flops,
        )
        return prediction.step_time_s

    return step_s


def trainable(recipe: Recipe) -> Recipe:
    """A recipe that exajax can train, with the model's name removed: equal programs are equal.

    Raises:
        InputError: exajax cannot train it.
    """
    checked = recipe.replaced()
    # Rows with the same program may have different names for the model.
    model = dataclasses.replace(checked.model, name="published", source="")
    return dataclasses.replace(checked, model=model)


def _load_or_compile(recipe: Recipe, machine: Cluster) -> Compiled:
    try:
        return compiled_recipe.load_or_compile(recipe, machine)
    except (NotImplementedError, RuntimeError) as error:  # XLA's errors are RuntimeErrors
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError("engine compiled", f"XLA refuses it: {first}", "try analytic") from error
