"""Compiled steps on disk, in real processes: what is read back is what was compiled, to the bit."""

import dataclasses
import os
import subprocess
import sys
import zlib

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import exajax
from exajax import load_cluster
from exajax.models.presets import lookup
from exajax.program import compile, store
from exajax.program.compiled import Artifact
from exajax.program.memory import Buffer, Memory
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec

JOB = ("simulate", "--model=gpt-tiny", "--mesh=2x4", "--json")
H100 = load_cluster("dgx-h100")


def simulate(folder, **environment):
    environment = os.environ | {"XDG_CACHE_HOME": str(folder)} | environment
    done = subprocess.run(
        [sys.executable, "-m", "exajax", *JOB], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def entries(folder):
    return sorted((folder / "exajax" / "programs").iterdir())


@pytest.fixture(scope="module")
def cold(tmp_path_factory):
    """A cache folder with one entry, and what the run that made it said."""
    folder = tmp_path_factory.mktemp("cold")
    return folder, simulate(folder, PYTHONHASHSEED="1")


@pytest.mark.slow
def test_cold_runs_say_the_same_bytes_whatever_the_hash_seed(cold, tmp_path):
    assert simulate(tmp_path, PYTHONHASHSEED="2") == cold[1]


def test_a_cached_run_says_the_same_bytes_and_does_not_need_jax(cold, tmp_path):
    folder, said = cold
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise ImportError('not needed')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    assert simulate(folder, PYTHONHASHSEED="3", PYTHONPATH=path) == said
    assert len(entries(folder)) == 1


def test_a_damaged_entry_is_compiled_again(cold, tmp_path):
    folder, said = cold
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", whole[:5000] + b"\0" + whole[5001:]):
        entry.write_bytes(damaged)
        assert store.load(entry.name) is None
    assert simulate(folder) == said
    assert entry.read_bytes() == whole


def artifact(text="HloModule m"):
    buffer = Buffer(10, "activations", "kept", "jit(f)/jvp(x)", "f32[1]")
    return Artifact(text, {"data": 2}, Memory(1, 2, 3, 4, 5, 6, (buffer,)), 0.25, 0.1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_what_is_stored_is_read_back(folder):
    store.store("a", artifact())
    assert store.load("a") == artifact()
    assert store.load("b") is None


@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b'{"text": 1, "mesh_axes": {}, "memory": {}, "bubble": 0, "xla_estimate_s": 0}',
        b"9" * 5000,
        b"\xff",
    ],
)
def test_an_entry_of_something_else_is_not_there(folder, content):
    store.store("a", artifact())
    (entry,) = entries(folder)
    entry.write_bytes(zlib.compress(content))
    assert store.load("a") is None
    store.store("a", artifact())
    assert store.load("a") == artifact()


def test_an_entry_that_unpacks_without_end_is_not_unpacked(folder, monkeypatch):
    store.store("a", artifact(text=" " * 10_000_000))
    (entry,) = entries(folder)
    assert entry.stat().st_size < 100_000
    monkeypatch.setattr(store, "MOST_UNPACKED", 1_000_000)
    assert store.load("a") is None


def test_the_switch_of_jax_turns_it_off(folder, monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    store.store("a", artifact())
    assert not (folder / "exajax").exists()


def test_a_folder_that_cannot_be_made_stops_nothing(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    store.store("a", artifact())
    assert store.load("a") is None


def test_the_oldest_make_room(folder, monkeypatch):
    for age, name in enumerate(("new", "middle", "old")):
        store.store(name, artifact())
        path = folder / "exajax" / "programs" / name
        os.utime(path, (1e9 - age, 1e9 - age))
    assert store.load("old") is not None  # used, so no longer the oldest
    monkeypatch.setattr(store, "MOST_BYTES", 3 * path.stat().st_size)
    store.store("next", artifact())
    assert [entry.name for entry in entries(folder)] == ["new", "next", "old"]


def test_a_key_follows_from_recipe_machine_and_settings(monkeypatch):
    recipe = Recipe.of(lookup("gpt-tiny"), MeshSpec.parse("2x4"))
    longer = dataclasses.replace(recipe, steps=7)
    other = dataclasses.replace(recipe, remat="full")
    key = store.key("recipe", recipe.program, H100.digest)
    assert store.key("recipe", longer.program, H100.digest) == key  # the same program
    assert store.key("recipe", other.program, H100.digest) != key
    assert store.key("recipe", recipe.program, "another machine") != key
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_triton_gemm=false")
    assert store.key("recipe", recipe.program, H100.digest) != key


def test_a_workload_of_ones_own_is_compiled_once_and_again_when_it_changes(folder, monkeypatch):
    compiled = []
    original = compile._compile_artifact
    monkeypatch.setattr(compile, "_compile_artifact", lambda *a: compiled.append(1) or original(*a))

    def predict(scale):
        def loss(module, batch):
            return scale * jnp.mean(jnp.square(module(batch["x"])))

        workload = exajax.Workload(
            lambda rngs: nnx.Linear(8, 8, rngs=rngs),
            loss,
            {"x": jax.ShapeDtypeStruct((8, 8), jnp.float32)},
            optax.sgd(0.1),
        )
        return exajax.predict(workload, "2x1", H100, zero=0).to_json()

    assert predict(1.0) == predict(1.0)
    assert len(compiled) == 1
    predict(2.0)
    assert len(compiled) == 2
