"""The compiled step of a recipe, from the store or from the compiler."""

from exajax.job import runtime
from exajax.machine.cluster import Cluster
from exajax.program import store
from exajax.program.compiled import Compiled
from exajax.recipe.recipe import Recipe


def load_or_compile(recipe: Recipe, cluster: Cluster) -> Compiled:
    """The step of a recipe, compiled for a cluster; a stored one is read without importing JAX."""
    name = store.key("recipe", recipe.program, cluster.digest)
    artifact = store.load(name) if store.keeps_programs_of(cluster) else None
    if artifact is None:
        runtime.import_jax()
        from exajax.program.compile import compile_recipe

        artifact = compile_recipe(recipe, cluster)
        if store.keeps_programs_of(cluster):
            store.store(name, artifact)
    return Compiled.of(artifact)
