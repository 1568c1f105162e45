"""A state saved on any mesh goes on on any other, and one of another model is named by its array.

Four layers on fake devices; every folder is a real checkpoint of Orbax.
"""

import dataclasses
import functools
import json
import re
import shutil

import jax
import numpy as np
import pytest

from exajax import InputError, MeshSpec, Recipe
from exajax.files.schema import decode_record
from exajax.recipe import text_workload
from exajax.spmd.step import TrainStep
from exajax.train.checkpoint import checksums
from exajax.train.checkpoint.checkpointing import Checkpointing
from exajax.train.checkpoint.checkpoints import Checkpoints
from exajax.train.checkpoint.manifest import Manifest, difference
from exajax.train.checkpoint.regrouping import as_saved
from exajax.train.sinks import history
from tests.conftest import command
from tests.spmd.runs import batch_of, small, step_on

LAYOUTS = {
    "data=2,model=2": {"zero": 1},
    "fsdp=4": {},
    "pipe=2": {"micro_batch": 8},
    "pipe=2 interleaved": {"micro_batch": 8, "schedule": "interleaved", "interleave": 2},
}


@functools.cache
def on(layout, optimizer="adamw"):
    mesh = MeshSpec.parse(layout.split()[0])
    return step_on(mesh, "llama", optimizer=optimizer, **LAYOUTS[layout])


def step_of(config, mesh="1x1", **options):
    spec = MeshSpec.parse(mesh)
    recipe = Recipe.of(config, spec, global_batch=16, **options)
    built = spec.build(jax.devices()[: spec.devices])
    return TrainStep.of(text_workload.workload(recipe, "cpu"), built, **recipe.step_options)


def whole(state, step):
    """Every array on the host by its name, with all layers on one axis."""
    manifest = Manifest.of(step, 0)
    arrays = zip(manifest.arrays, jax.tree.leaves(jax.device_get(state)), strict=True)
    return {name: array.reshape(manifest.unstacked_shape(name)) for name, array in arrays}


def save(folder, step, state, done=1):
    store = Checkpoints(Checkpointing(folder), step)
    store.save(done, state, {}, wait=True)


def restore(folder, step):
    return Checkpoints(Checkpointing(folder), step).restore().state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """By layout: the folder of a checkpoint, the arrays in it, and the loss of the step after."""

    @functools.cache
    def of(layout):
        step, folder = on(layout), tmp_path_factory.mktemp("saved")
        state, _ = step.update(step.init(np.uint32(0)), batch_of(step, 0))
        save(folder, step, state)
        arrays = whole(state, step)
        _, metrics = step.update(state, batch_of(step, 1))
        return folder, arrays, float(metrics["loss"])

    return of


def assert_restored(folder, arrays, step):
    """Restores onto a step's mesh, and returns the state if it is bit for bit what was saved."""
    state = restore(folder, step)
    for ours, described in zip(jax.tree.leaves(state), jax.tree.leaves(step.state), strict=True):
        assert ours.sharding.is_equivalent_to(described.sharding, ours.ndim)
    ours = whole(state, step)
    assert list(ours) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(ours[name], array, err_msg=name)
    return state


NEXT = dict(zip(LAYOUTS, [*LAYOUTS][1:] + [*LAYOUTS][:1], strict=True))

PAIRS = [
    pytest.param(source, target, marks=() if NEXT[source] == target else pytest.mark.slow)
    for source in LAYOUTS
    for target in LAYOUTS
]
"""Every layout is once left and once come to in CI; all pairs before a release."""


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_state_goes_on_on_any_other_mesh(saved, source, target):
    folder, arrays, loss = saved(source)
    step = on(target)
    state = assert_restored(folder, arrays, step)
    _, metrics = step.update(state, batch_of(step, 1))
    np.testing.assert_allclose(float(metrics["loss"]), loss, rtol=1e-5)


def random_state(step):
    """A state of which no two numbers are equal but by chance."""
    rng = np.random.default_rng(0)

    def one(leaf):
        value = rng.integers(1, 2**20, leaf.shape).astype(leaf.dtype)
        return jax.device_put(value, leaf.sharding)

    state = jax.tree.map(one, step.state)
    return state._replace(step=jax.device_put(np.int32(1), step.state.step.sharding))


@pytest.mark.parametrize("optimizer", ["adafactor", "muon"])
@pytest.mark.parametrize(
    ("source", "target"),
    [("pipe=2 interleaved", "fsdp=4"), ("fsdp=4", "pipe=2 interleaved")],
)
def test_so_do_moments_of_other_shapes_than_their_parameters(tmp_path, source, target, optimizer):
    step = on(source, optimizer)
    state = random_state(step)
    save(tmp_path, step, state)
    assert_restored(tmp_path, whole(state, step), on(target, optimizer))


@pytest.mark.parametrize(
    ("layers", "parts", "target", "axis"),
    [
        (8, 4, {"schedule": "interleaved", "interleave": 2}, 0),
        (4, 2, {}, 2),  # two parts of two layers: four stages divide another axis of theirs
    ],
)
def test_layers_stay_divided_while_they_are_regrouped(tmp_path, layers, parts, target, axis):
    config = dataclasses.replace(small("llama"), layers=layers)
    source = step_of(config, "pipe=2", schedule="interleaved", interleave=parts)
    step = step_of(config, "pipe=4", **target)
    manifest = Manifest.of(source, 0)
    form = as_saved(step.state, manifest.arrays).params["stack"]["blocks"]["mlp"]["up"]["kernel"]
    assert form.shape[:2] == (parts, layers // parts)
    assert form.sharding.spec[axis] in ("pipe", ("pipe",))
    state = random_state(source)
    save(tmp_path, source, state)
    assert_restored(tmp_path, whole(state, source), step)


@pytest.fixture
def folder(tmp_path, saved):
    """A copy of a checkpoint, with its manifest to be tampered with."""
    source, _, _ = saved("fsdp=4")
    return shutil.copytree(source, tmp_path / "checkpoints")


def manifest_of(folder):
    return folder / "1" / "manifest.json"


def seal(folder):
    """Makes of what is there now what the checksums speak of."""
    checkpoint = folder / "1"
    checksums.write(checkpoint, checksums.sums_of(checkpoint, checksums.files_in(checkpoint)))


def test_a_manifest_tells_what_is_there_and_where_it_came_from(folder):
    content = json.loads(manifest_of(folder).read_text())
    assert content["mesh"]["fsdp"] == 4
    assert {"jax", "orbax-checkpoint"} <= set(content["versions"])
    assert content["step"] == 1
    name = "params.stack.blocks.mlp.up.kernel"
    assert content["arrays"][name] == {"shape": [4, 64, 128], "dtype": "float32"}
    assert (content["samples"], content["seed"]) == (16, 0)
    manifest = decode_record(manifest_of(folder).read_bytes(), Manifest)
    assert manifest == Manifest.of(on("fsdp=4"), 1, digests=manifest.digests)
    assert list(manifest.digests) == list(manifest.arrays)


def test_another_width_is_named_before_an_array_is_read(folder):
    for arrays in folder.glob("1/state/**/d"):  # were they read, that would be the error
        for file in arrays.iterdir():
            file.unlink()
    wider = step_of(dataclasses.replace(small("llama"), ffn=192), precision="fp32")
    with pytest.raises(InputError) as caught:
        restore(folder, wider)
    assert caught.value.field == "run_dir"
    assert caught.value.problem.endswith(
        "params.stack.blocks.mlp.down.kernel has shape [4, 128, 64], "
        "and this model's has [4, 192, 64]"
    )


@pytest.mark.parametrize(
    ("optimizer", "says"),
    [
        ("lion", r"another one: optimizer\.1\.nu\..* is there, and this model's state has none"),
        ("adafactor", r"another one: optimizer\.1\.step is not there"),
    ],
)
def test_another_optimizer_is_named(folder, optimizer, says):
    with pytest.raises(InputError, match=says):
        restore(folder, on("fsdp=4", optimizer))


def test_another_precision_and_a_missing_array_are_named(folder):
    with pytest.raises(InputError, match=r"params\..* is float32, and this model's is bfloat16"):
        restore(folder, step_of(small("llama"), precision="pure-bf16"))
    content = json.loads(manifest_of(folder).read_text())
    del content["arrays"]["params.stack.blocks.mlp.up.kernel"]
    manifest_of(folder).write_text(json.dumps(content))
    seal(folder)
    with pytest.raises(InputError, match=r": params\.stack\.blocks\.mlp\.up\.kernel is not there"):
        restore(folder, on("fsdp=4"))


@pytest.mark.parametrize("left", ['{"step": 1, "arr', '{"step": 1}', "[]"])
def test_a_manifest_that_was_saved_wrong_is_told(folder, left):
    manifest_of(folder).write_text(left)
    seal(folder)
    says = r"no checkpoint in .* can be used: 1: manifest\.json .*; .*remove the damaged"
    with pytest.raises(InputError, match=says):
        restore(folder, on("fsdp=4"))


def test_mesh_and_versions_are_no_difference_and_told_where_arrays_cannot_be_read(folder):
    content = json.loads(manifest_of(folder).read_text())
    content["versions"]["jax"] = "99.0"
    manifest_of(folder).write_text(json.dumps(content))
    saved = decode_record(manifest_of(folder).read_bytes(), Manifest)
    assert difference(saved, Manifest.of(on("pipe=2"), 7)) is None
    for arrays in folder.glob("1/state/**/d"):
        for file in arrays.iterdir():
            file.write_bytes(b"")
    seal(folder)
    with pytest.raises(InputError) as caught:
        restore(folder, on("pipe=2"))
    says = "cannot be restored.*saved on mesh fsdp=4,.* jax 99.0.*here it is mesh pipe=2"
    assert re.search(says, str(caught.value))


def test_a_run_goes_on_on_another_mesh_in_its_folder(tmp_path, text):
    path = tmp_path / "tiny.toml"
    path.write_text(
        'family = "llama"\nlayers = 4\nwidth = 32\nheads = 4\nkv_heads = 4\nffn = 64\n'
        "vocab = 256\nseq = 16\n"
    )

    def train(mesh, steps, *more):
        where = (f"--run-dir={tmp_path / 'run'}", f"--data={text}", "--metrics-port=0")
        job = ("--precision=fp32", "--global-batch=8", f"--steps={steps}")
        return command("train", f"--mesh={mesh}", f"--model={path}", *where, *job, *more)

    first = train("1x2", 4)
    assert first.returncode == 0, first.stderr
    interleaved = ("--schedule=interleaved", "--interleave=2", "--zero=1", "--remat=none")
    second = train("pipe=2", 6, *interleaved, "--json")
    assert second.returncode == 0, second.stderr
    assert "goes on from the checkpoint of step 4: 2 steps to go" in second.stderr
    result = json.loads(second.stdout)
    assert (result["resumed_from"], result["step"], len(result["losses"])) == (4, 6, 6)
    records = history.read(tmp_path / "run" / "metrics.jsonl")
    (timed,) = (r["step_time_s"] for r in records if "step_time_s" in r and r["step"] > 4)
    assert result["step_time_s"] == {"p50": timed, "p95": timed}
    path.write_text(path.read_text().replace("ffn = 64", "ffn = 96"))
    other = train("pipe=2", 8)
    assert other.returncode == 2
    assert "its recipe.model.ffn is 64, this one's is 96" in other.stderr
    assert other.stderr.count("\n") == 1
