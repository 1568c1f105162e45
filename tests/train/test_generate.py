"""Writing text: against the whole forward pass, and as it is done on the command line."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers
from flax import nnx

from exajax import Checkpointing, InputError, MeshSpec, TrainStep, Workload, fit
from exajax.models.presets import PRESETS
from exajax.recipe import text_workload
from exajax.spmd.parameters import abstract_parameters
from exajax.spmd.sharding import use_mesh
from exajax.train.generate import CHUNK, LanguageModel, Sampling, as_text, draw, generate
from tests.conftest import command

PROMPT = list(b"3 times 3 is")
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module", params=["gpt-tiny", "llama-tiny", "mixtral-tiny"])
def model(request):
    """A model of random weights, large enough that its choices differ from token to token."""
    config = dataclasses.replace(PRESETS[request.param], vocab=250, layers=2, seq=64)
    mesh = MeshSpec().build(jax.devices()[:1])
    module, _ = abstract_parameters(text_workload.inference_model(config), mesh)
    with nnx.use_eager_sharding(False):
        drawn = nnx.to_pure_dict(nnx.state(text_workload.inference_model(config)(nnx.Rngs(0))))

    def logits(params, tokens_BT):
        return module(params)(tokens_BT)

    return config, jax.jit(logits), jax.tree.map(lambda leaf: 5 * leaf, drawn)


def tokens_of(model, how, tokens=20, prompt=PROMPT):
    config, logits, params = model
    chunks = generate(LanguageModel(logits, params, config.seq, config.vocab), prompt, tokens, how)
    return [token for chunk in chunks for token in chunk]


def test_greedy_takes_the_likeliest_token_of_the_whole_forward_pass_everywhere(model):
    config, logits, params = model
    made = tokens_of(model, GREEDY, tokens=config.seq - len(PROMPT))
    assert len(set(made)) > 10
    whole = jnp.array([PROMPT + made])
    likeliest = jnp.argmax(logits(params, whole)[0, :, : config.vocab], axis=-1)
    assert likeliest[len(PROMPT) - 1 : -1].tolist() == made


def test_text_beyond_the_window_goes_on_from_its_end(model):
    config, logits, params = model
    made = tokens_of(model, GREEDY, tokens=config.seq + 10)
    text = PROMPT + made
    for end in range(len(text) - 10, len(text)):
        seen = jnp.array([text[end - config.seq : end]])
        assert int(jnp.argmax(logits(params, seen)[0, -1, : config.vocab])) == text[end]


def test_the_likeliest_one_of_one_is_greedy(model):
    assert tokens_of(model, Sampling(temperature=3.0, top_k=1)) == tokens_of(model, GREEDY)


def test_nothing_comes_behind_the_end_of_a_document(model):
    config, logits, params = model
    made = tokens_of(model, Sampling(seed=5))
    ending = LanguageModel(logits, params, config.seq, config.vocab, end=made[7])
    chunks = generate(ending, PROMPT, 20, Sampling(seed=5))
    assert [token for chunk in chunks for token in chunk] == made[: made.index(made[7])]


def test_equal_seeds_write_equal_text_and_others_do_not(model):
    first, again, other = (tokens_of(model, Sampling(seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_longer_text_begins_as_a_shorter_one(model):
    how = Sampling(seed=3)
    assert tokens_of(model, how, CHUNK + 5)[:7] == tokens_of(model, how, 7)


def test_tokens_that_pad_the_vocabulary_are_never_drawn(model):
    assert max(tokens_of(model, Sampling(temperature=1e4), 200)) < 250


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits_V = jnp.log(jnp.array([0.5, 0.1, 0.3, 0.06, 0.04]))
    keys = jax.random.split(jax.random.key(0), 20_000)

    def share(how):
        drawn = jax.vmap(lambda key: draw(logits_V, key, how))(keys)
        return np.bincount(drawn, minlength=5) / len(keys)

    np.testing.assert_allclose(share(Sampling()), jnp.exp(logits_V), atol=0.015)
    np.testing.assert_allclose(share(Sampling(top_k=2)), [0.625, 0, 0.375, 0, 0], atol=0.015)
    hot = jnp.exp(logits_V / 2) / jnp.exp(logits_V / 2).sum()
    np.testing.assert_allclose(share(Sampling(temperature=2.0)), hot, atol=0.015)


def test_devices_share_the_work_without_a_change_of_the_text(model):
    config, _, params = model
    mesh = MeshSpec(model=4).build(jax.devices()[:4])
    module, described = abstract_parameters(text_workload.inference_model(config), mesh)
    shared = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, described))

    def shared_logits(params, tokens_BT):
        with use_mesh(mesh):
            return module(params)(tokens_BT)

    assert tokens_of((config, shared_logits, shared), GREEDY) == tokens_of(model, GREEDY)


def test_a_character_is_shown_when_it_is_complete():
    decode = lambda ids: bytes(ids).decode(errors="replace")  # noqa: E731
    ids = [*"aß€b".encode(), 0xE2]
    shown = list(as_text([[i] for i in ids], decode))
    assert "".join(shown) == "aß€b\N{REPLACEMENT CHARACTER}"
    assert [text for text in shown if text] == ["a", "ß", "€", "b", "\N{REPLACEMENT CHARACTER}"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokens": 0}, "tokens: 0"),
        ({"prompt": []}, "prompt: it has 0 tokens"),
        ({"prompt": [1] * 65}, "prompt: it has 65 tokens, and the model sees 1 to 64"),
    ],
)
def test_what_cannot_be_written_is_refused(model, change, says):
    with pytest.raises(InputError) as caught:
        tokens_of(model, GREEDY, **change)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_k", 0), ("seed", -1)],
)
def test_a_wrong_way_to_sample_is_named(field, value):
    with pytest.raises(InputError, match=f"{field}: "):
        Sampling(**{field: value})


@pytest.fixture(scope="module")
def tokenizer(text, tmp_path_factory):
    """A `tokenizer.json` of pieces of words."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train([str(text)], trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    model.save(str(path))
    return path


@pytest.fixture(scope="module")
def run(text, tokenizer, tmp_path_factory):
    """The folder of a small model that has learned a text."""
    folder = tmp_path_factory.mktemp("runs")
    dimensions = (
        'family = "gpt"\nlayers = 2\nwidth = 64\nheads = 4\nffn = 256\nvocab = 300\nseq = 32\n'
    )
    (folder / "small.toml").write_text(dimensions)
    result = command(
        "train",
        "--mesh=1x1",
        f"--model={folder / 'small.toml'}",
        "--precision=fp32",
        "--global-batch=16",
        "--learning-rate=5e-3",
        "--steps=80",
        "--save-every=1000",
        f"--data={text}",
        f"--tokenizer={tokenizer}",
        f"--run-dir={folder / 'run'}",
        "--metrics-port=0",
    )
    assert result.returncode == 0, result.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def flags(run, tokenizer):
    """What every command here is told."""
    return [f"--run-dir={run}", f"--tokenizer={tokenizer}", "--prompt=12 times "]


def test_a_trained_model_writes_what_it_has_learned(flags):
    result = command("sample", *flags, "--temperature=0", "--tokens=100")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("12 times ")
    assert ", and so it goes on." in result.stdout


def test_json_is_one_object_on_standard_output(flags):
    result = command("sample", *flags, "--tokens=30", "--seed=7", "--json")
    again = command("sample", *flags, "--tokens=30", "--seed=7")
    found = json.loads(result.stdout)
    assert found["step"] == 80
    assert len(found["tokens"]) == 30
    assert again.stdout == f"12 times {found['text']}\n"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--run-dir=/nowhere"], "--run-dir: /nowhere holds no checkpoint"),
        (["--prompt=" + "x" * 33], "--prompt: it has 33 tokens"),
        (["--temperature=-1"], "--temperature"),
        (["--tokenizer=/nowhere"], "--tokenizer: /nowhere does not exist"),
        (["--tokenizer=bytes"], "--tokenizer: small was trained with tokenizer.json"),
    ],
)
def test_wrong_input_ends_with_one_line(flags, wrong, says):
    result = command("sample", *flags, *wrong)
    assert result.returncode == 2
    assert says in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("about", "says"),
    [
        ({}, "does not say which model"),
        (
            {"recipe": {"model": dataclasses.asdict(PRESETS["vit-tiny"]), "interleave": 1}},
            "vit-tiny is a vit; give the run of a language model",
        ),
    ],
)
def test_a_run_that_wrote_no_text_is_refused(tmp_path, about, says):
    one = jax.ShapeDtypeStruct((1, 1), jnp.float32)
    workload = Workload(
        build=lambda rngs: nnx.Linear(1, 1, rngs=rngs),
        loss=lambda module, batch: jnp.mean(module(batch["x"]) ** 2),
        batch={"x": one},
        optimizer=optax.sgd(0.1),
    )
    step = TrainStep.of(workload, MeshSpec().build(jax.devices()[:1]))
    saving = Checkpointing(tmp_path / "checkpoints", facts=about)
    fit(step, lambda number: {"x": np.ones((1, 1))}, steps=1, checkpoints=saving)
    result = command("sample", f"--run-dir={tmp_path}", "--prompt=a")
    assert result.returncode == 2
    assert says in result.stderr
