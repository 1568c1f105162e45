"""The benchmarks run from a checkout, and both of their sides compute the same mathematics."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from exajax.models.presets import PRESETS
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec
from tests.conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"


def script(name, *flags, **environment):
    done = subprocess.run(
        [sys.executable, BENCHMARKS / name, *flags],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("model", "precision", "tolerance"),
    [
        pytest.param("gpt-tiny", "fp32", 2e-5, marks=pytest.mark.slow),
        ("llama-tiny", "fp32", 2e-5),
        pytest.param("gpt-tiny", "bf16", 0.02, marks=pytest.mark.slow),
    ],
)
def test_the_same_model_in_torch_has_the_losses_of_exajax(monkeypatch, model, precision, tolerance):
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from sides import batches, exajax_side, torch_side

    recipe = Recipe.of(
        PRESETS[model], MeshSpec(), global_batch=2, seq=32, precision=precision, warmup_steps=1
    )
    ours, params = exajax_side(recipe)
    twin = torch_side(recipe, "cpu", compiled=False, params=params())
    given = batches(recipe, 0, 6)
    losses = ours(given)
    assert len(set(losses)) == 6
    np.testing.assert_allclose(losses, twin(given), atol=tolerance)


def test_the_cpu_benchmark_keeps_the_times_of_every_round(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "out.json"
    flags = ("--tiny", "--no-compile", "--rounds=1", "--patience=0", f"--out={out}")
    assert "exajax" in script("cpu_nanogpt.py", *flags)
    kept = json.loads(out.read_text())
    assert kept["versions"]["jax"]
    assert [result["precision"] for result in kept["results"]] == ["fp32", "bf16"]
    for result in kept["results"]:
        ours, theirs = result["turns"][:2]
        assert (ours["side"], theirs["side"]) == ("exajax", "torch eager")
        assert ours["losses"] == pytest.approx(theirs["losses"], abs=0.02)
        assert ours["step_s"] > 0
        assert ours["others"] >= 0


TINY = ("--tiny", "--rounds=1", "--steps=2")


def test_the_gpu_benchmark_runs_both_sides(tmp_path):
    pytest.importorskip("torch")
    out = tmp_path / "out.json"
    printed = script("gpu_training.py", *TINY, "--model=llama-tiny", "--eager", f"--out={out}")
    ours, theirs = json.loads(out.read_text())["results"]
    assert (ours["side"], theirs["side"]) == ("exajax", "torch")
    assert ours["tokens_per_s"] > 0
    assert theirs["tokens_per_s"] > 0
    assert "exajax / torch" in printed


@pytest.mark.slow
def test_the_gpu_benchmark_says_which_side_is_missing(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('it is not installed here')\n")
    flags = (*TINY, "--model=gpt-tiny", f"--out={tmp_path / 'out.json'}")
    printed = script("gpu_training.py", *flags, PYTHONPATH=str(tmp_path))
    assert "torch   left out: ImportError: it is not installed here" in printed
    assert "exajax / torch" not in printed


@pytest.mark.slow
def test_the_compile_benchmark_times_its_stages(tmp_path):
    pytest.importorskip("jax_cuda12_plugin")
    out = tmp_path / "out.json"
    flags = ("--model=llama-tiny", "--mesh=8x8", "--rounds=1", f"--out={out}")
    assert "the aim" in script("compile_70b.py", *flags)
    (kept,) = json.loads(out.read_text())["rounds"]
    assert kept["total_s"] == pytest.approx(sum(kept["stages_s"].values()))
    assert kept["cpu_s"] > 0
