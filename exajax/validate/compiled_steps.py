"""Steps of published rows as the trainer would run them: compiled, and priced by the program."""

import dataclasses
from collections.abc import Callable

from exajax import units
from exajax.errors import InputError
from exajax.machine.cluster import Cluster
from exajax.program import compiled_recipe
from exajax.program.compiled import Compiled
from exajax.recipe.recipe import Recipe
from exajax.simulate.prediction import predict_step


def pricer(told: Callable[[str], None]) -> Callable[[Recipe, Cluster], float]:
    """Returns what predicts steps by the compiled engine, and compiles each program once.

    What it returns raises an `InputError` for a recipe that the trainer does not run, such as one
    with uneven stages.

    Args:
        told: is called with every program that is compiled, or read from the cache.
    """
    programs: dict[tuple[str, str], Compiled] = {}

    def step_s(recipe: Recipe, machine: Cluster) -> float:
        recipe = trainable(recipe)
        machine.check(recipe.mesh.devices, recipe.precision)
        key = (recipe.digest, machine.digest)
        if key not in programs:
            size = units.show(recipe.model.parameters, "")
            told(f"{size} parameters on {recipe.mesh} of {machine.name}")
            programs[key] = _compiled(recipe, machine)
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
    """Returns a recipe checked as one of our own; equal programs are equal recipes.

    Raises:
        InputError: the trainer does not run it.
    """
    checked = recipe.replaced()
    # Rows of one program differ in what their tables call the model.
    model = dataclasses.replace(checked.model, name="published", source="")
    return dataclasses.replace(checked, model=model)


def _compiled(recipe: Recipe, machine: Cluster) -> Compiled:
    try:
        return compiled_recipe.load_or_compile(recipe, machine)
    except (NotImplementedError, RuntimeError) as error:  # XLA's errors are RuntimeErrors
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError("engine compiled", f"XLA refuses it: {first}", "try analytic") from error
