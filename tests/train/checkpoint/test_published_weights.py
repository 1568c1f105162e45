"""Published weights as the beginning of a run, and a run's end as published weights."""

import json

import jax
import numpy as np
import pytest

from exajax import MeshSpec
from exajax.models.presets import lookup
from exajax.recipe import text_workload
from exajax.recipe.recipe import Recipe
from exajax.spmd.step import TrainStep
from exajax.train.checkpoint import published_weights
from exajax.train.data.corpus import load_corpus
from exajax.train.data.text_batches import TextBatches
from exajax.train.sinks import history
from tests.conftest import command

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A GPT-2 whose logits are far below zero, as those of OpenAI's are, and vocabulary odd."""
    folder = tmp_path_factory.mktemp("published") / "gpt2-small"
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=4, n_embd=64, n_head=4, vocab_size=257, n_positions=64, initializer_range=0.1
    )
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        common = torch.randn(64)
        model.transformer.wte.weight += common
        model.transformer.ln_f.bias -= 2 * common
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(published, text, tmp_path_factory):
    """The flags that train it for a few steps, the folder of the run, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    flags = ["--mesh=fsdp=2", f"--model={published}", f"--init={published}", "--precision=fp32"]
    flags += [f"--data={text}", f"--run-dir={folder}", "--global-batch=4", "--metrics-port=0"]
    result = command("train", *flags, "--steps=5")
    assert result.returncode == 0, result.stderr
    return flags, folder, result.stdout


@pytest.fixture(scope="module")
def first(published, text):
    """The batch of the first step, and the loss that transformers has on it."""
    corpus = load_corpus(str(text), "bytes", seq=64, vocab=257)
    batch = next(TextBatches(corpus, batch=4, seed=0).iterate(0, np.arange(4)))
    model = transformers.GPT2LMHeadModel.from_pretrained(published).eval()
    with torch.no_grad():
        logits = model(torch.tensor(batch["inputs"])).logits
    assert logits.max() < -10  # an empty row would have taken all of the probability
    targets = torch.tensor(batch["targets"]).long()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return batch, float(loss)


def test_training_begins_with_the_loss_of_the_published_model(trained, first):
    records = history.read(trained[1] / "metrics.jsonl")
    assert records[0]["loss"] == pytest.approx(first[1], rel=1e-4)


def test_so_it_does_where_an_interleaved_pipeline_keeps_layers_on_two_axes(published, first):
    model, spec = lookup(str(published)), MeshSpec.parse("data=2,pipe=2")
    options = {"global_batch": 4, "precision": "fp32", "schedule": "interleaved", "interleave": 2}
    recipe = Recipe.of(model, spec, micro_batch=1, **options)
    mesh = spec.build(jax.devices()[:4])
    step = TrainStep.of(text_workload.workload(recipe, "cpu"), mesh, **recipe.step_options)
    state = published_weights.start(step, published, model)
    jax.tree.map(lambda got, wanted: _same_place(got, wanted), state, step.state)
    placed = {name: jax.device_put(first[0][name], a.sharding) for name, a in step.batch.items()}
    state, metrics = step.update(state, placed)
    assert float(metrics["loss"]) == pytest.approx(first[1], rel=1e-4)
    assert int(state.step) == 1


def _same_place(got, wanted):
    assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
    assert got.sharding.is_equivalent_to(wanted.sharding, got.ndim)


def test_a_run_that_goes_on_says_that_it_reads_no_weights(trained):
    flags, _, _ = trained
    result = command("train", *flags, "--steps=6")
    assert result.returncode == 0, result.stderr
    assert (
        "goes on from the checkpoint of step 5: 1 steps to go; the given weights are not read"
        in (result.stdout)
    )


def test_what_was_trained_is_exported(trained, tmp_path):
    from transformers import AutoModelForCausalLM

    _, folder, _ = trained
    result = command("export", "--run-dir", folder, "--out", tmp_path / "out", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["model"] == "gpt2-small"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    # With greedy choice both write the same text.
    ids = torch.tensor([list(b"12 times ")])
    theirs = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    flags = ["--prompt", "12 times ", "--tokens", "20", "--temperature", "0", "--precision", "fp32"]
    ours = command("sample", "--run-dir", folder, *flags, "--json")
    assert json.loads(ours.stdout)["tokens"] == theirs


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--model=gpt-tiny"], "has layers 4, and gpt-tiny has 8; give --model"),
        (["--init=/nowhere"], "--init: /nowhere is not a folder"),
    ],
)
def test_weights_that_do_not_fit_are_refused(published, trained, tmp_path, flags, says):
    given = [*trained[0], f"--run-dir={tmp_path / 'run'}", *flags]
    result = command("train", *given)
    assert result.returncode == 2
    assert says in result.stderr
    assert not (tmp_path / "run").exists()


def test_weights_of_another_size_than_their_config_are_refused(published, trained, tmp_path):
    config = json.loads((published / "config.json").read_text()) | {"n_embd": 128}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(published / "model.safetensors")
    flags = [*trained[0], f"--model={tmp_path}", f"--init={tmp_path}", "--run-dir=nowhere"]
    result = command("train", *flags)
    assert result.returncode == 2
    assert "transformer.wte.weight" in result.stderr


def test_the_main_job_takes_no_weights(published, text):
    from tests.conftest import REPOSITORY

    front_door = REPOSITORY / "launch" / "multihost.py"
    result = command(front_door, "--mesh=128x8", f"--data={text}", f"--init={published}")
    assert result.returncode == 2
    assert "--init: a small model is trained here" in result.stderr
