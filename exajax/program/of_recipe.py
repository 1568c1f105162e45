"""The compiled step of a recipe: from the store, or compiled for a described machine."""

from exajax.job import runtime
from exajax.machine.cluster import Cluster
from exajax.program import store
from exajax.program.compiled import Compiled
from exajax.recipe.recipe import Recipe


def compiled(recipe: Recipe, cluster: Cluster) -> Compiled:
    """Returns the step of a recipe as compiled for a cluster; what is kept is read without JAX."""
    name = store.key("recipe", recipe.program, cluster.digest)
    artifact = store.load(name) if store.serves(cluster) else None
    if artifact is None:
        runtime.import_jax()
        from exajax.program.compile import compile_recipe

        artifact = compile_recipe(recipe, cluster)
        if store.serves(cluster):
            store.store(name, artifact)
    return Compiled.of(artifact)
