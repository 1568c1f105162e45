"""A few real steps of a small model on any mesh, and how two of them are compared."""

import contextlib
import dataclasses
import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from exajax import MeshSpec, Recipe, TrainStep
from exajax.job import compilation_cache, jax_cache
from exajax.models.dimensions import ModelConfig
from exajax.models.presets import PRESETS
from exajax.recipe import text_workload
from tests.job.test_collective_order import program, unordered

STEPS, BATCH = 5, 16
TOLERANCE = 1e-5


class Run(NamedTuple):
    """What training left behind, and whether update and loss came from the compilation cache."""

    cache: list[str]
    losses: list[float]
    gradients: Any
    params: Any
    validation_loss: float


def small(family: str) -> ModelConfig:
    """Four narrow layers that every mesh of eight devices divides, but for pipe=8."""
    return dataclasses.replace(
        PRESETS[f"{family}-tiny"], name="small", layers=4, width=64, ffn=128, seq=32
    )


def step_on(mesh: MeshSpec, family: str, **options: Any) -> TrainStep:
    recipe = Recipe.of(
        small(family),
        mesh,
        global_batch=BATCH,
        precision="fp32",
        learning_rate=1e-3,
        steps=STEPS,
        warmup_steps=1,
        **options,
    )
    built = mesh.build(jax.devices()[: mesh.devices])
    return TrainStep.of(text_workload.workload(recipe, "cpu"), built, **recipe.step_options)


def batch_of(step: TrainStep, number: int) -> dict[str, jax.Array]:
    """Random tokens in documents of about ten; packed, some end with their sequence."""
    rng = np.random.default_rng(number)
    tokens = rng.integers(0, 256, (BATCH, 33)).astype(np.int32)
    ends = np.cumsum(rng.random((BATCH, 32)) < 0.1, axis=1).astype(np.int32)
    arrays = {"inputs": tokens[:, :-1], "targets": tokens[:, 1:].copy(), "segments": ends}
    if "segments" in step.batch:
        arrays["targets"][::3, -1] = -1
    return {k: jax.device_put(arrays[k], leaf.sharding) for k, leaf in step.batch.items()}


def train(mesh: MeshSpec, family: str, **options: Any) -> Run:
    """Returns what five steps of AdamW leave behind."""
    step = step_on(mesh, family, **options)
    update, how = compilation_cache.timed_compile(step.update.lower(step.state, step.batch).compile)
    evaluate, how_too = compilation_cache.timed_compile(
        step.evaluate.lower(step.state.params, step.batch).compile
    )
    state, losses, gradients = step.init(np.uint32(0)), [], None
    for number in range(STEPS):
        state, metrics = update(state, batch_of(step, number))
        losses.append(float(metrics["loss"]))
        if gradients is None:  # AdamW's first moment is a tenth of the first gradient
            gradients = jax.device_get(optax.tree_utils.tree_get(state.optimizer, "mu"))
    validation = float(evaluate(state.params, batch_of(step, STEPS)))
    cache = [how.cache, how_too.cache]
    return Run(cache, losses, _known(gradients, step), _known(state.params, step), validation)


@contextlib.contextmanager
def programs_kept_in(folder: Path) -> Iterator[None]:
    """Within, JAX keeps every program that is compiled in a folder, as in a run of `exajax train`.

    A step that is built again is compiled again: it is read from there.
    """
    changed = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in changed}
    for name, value in changed.items():
        jax.config.update(name, value)
    jax_cache.install()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        jax_cache.install()


@functools.cache
def alone(family: str, packed: bool, moe: str) -> Run:
    """The same on one device, in one go."""
    return train(MeshSpec(), family, packed=packed, moe=moe, remat="none")


def assert_same_as_alone(mesh: MeshSpec, family: str, **options: Any) -> None:
    """Compares losses, first gradients and final parameters, each by its tensor's norm.

    What is read from the compilation cache leaves the same bits behind as what was compiled.
    """
    with tempfile.TemporaryDirectory() as folder, programs_kept_in(Path(folder)):
        got = train(mesh, family, **options)
        read = train(mesh, family, **options)
        assert_in_order(Path(folder))
    assert (got.cache, read.cache) == (["miss", "miss"], ["hit", "hit"])
    jax.tree.map(np.testing.assert_array_equal, read[1:], got[1:])
    expected = alone(family, options.get("packed", False), options.get("moe", "capacity"))
    np.testing.assert_allclose(got.losses, expected.losses, rtol=TOLERANCE)
    np.testing.assert_allclose(got.validation_loss, expected.validation_loss, rtol=TOLERANCE)
    assert_close(got.gradients, expected.gradients)
    assert_close(got.params, expected.params)


def assert_in_order(folder: Path) -> None:
    """Checks that collectives of a step from the cache cannot run in unlike orders on devices.

    Whether those that can do hang depends on the machine's threads and on who is first.
    """
    store = jax_cache.OrderedCache(jax_cache.OPEN(str(folder))[0], str(folder), overwrite=False)
    (entry,) = folder.glob("jit_update-*-cache")
    compressed = store.get(entry.name.removesuffix("-cache"))
    assert not unordered(program(jax_cache.unpacked(compressed)[0]))


def assert_close(got: Any, expected: Any) -> None:
    """Compares trees tensor by tensor: rounding scales with a tensor, not with its elements."""
    for path, theirs in jax.tree.leaves_with_path(expected):
        ours = functools.reduce(lambda tree, key: tree[key.key], path, got)
        distance, size = np.linalg.norm(ours - theirs), np.linalg.norm(theirs)
        assert distance <= TOLERANCE * size, f"{jax.tree_util.keystr(path)}: {distance / size:.1e}"


def _known(tree: Any, step: TrainStep) -> Any:
    """Returns arrays with all layers on one axis, without what is rounding and nothing else.

    The gradient of an attention's key bias is zero by its mathematics, and AdamW divides by it.
    """
    tree = jax.device_get(tree)
    parts = step.workload.loss.parts
    if parts > 1:
        blocks = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree["stack"])
        tree = {**tree, "stack": blocks}

    def known(path: Any, x: Any) -> Any:
        names = [key.key for key in path]
        return None if names[-2:] == ["key", "bias"] else x

    return jax.tree_util.tree_map_with_path(known, tree)
