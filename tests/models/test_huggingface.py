"""Models of transformers and ours: the same weights, the same logits, in both directions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from exajax import InputError, MeshSpec
from exajax.models.huggingface import weights_reader, weights_writer
from exajax.models.presets import PRESETS, lookup
from exajax.recipe import text_workload
from exajax.spmd.parameters import abstract_parameters

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROTARY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 200,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,  # logits that a wrong weight would change
    "rope_theta": 500_000.0,
}
MODELS = {
    "gpt": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=2, n_embd=64, n_head=8, vocab_size=200, n_positions=32, initializer_range=0.2
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**ROTARY)),
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**ROTARY, num_local_experts=4, num_experts_per_tok=2)
    ),
}
TOKENS = np.random.default_rng(0).integers(0, 200, (2, 32))


@pytest.fixture(scope="module", params=MODELS)
def published(request, tmp_path_factory):
    """A folder that transformers wrote, of several files, every weight drawn at random."""
    folder = tmp_path_factory.mktemp("published") / request.param
    torch.manual_seed(0)
    model = MODELS[request.param]()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.ndim == 1:  # norms begin as ones, and biases as zeros: any of them would do
                tensor.add_(0.2 * torch.randn_like(tensor))
            assert tensor.dtype == torch.float32, name
    model.save_pretrained(folder, max_shard_size="60KB")
    assert (folder / "model.safetensors.index.json").exists()
    return folder


def described(config, mesh="1x1"):
    spec = MeshSpec.parse(mesh)
    return abstract_parameters(
        text_workload.inference_model(config), spec.build(jax.devices()[: spec.devices])
    )


def our_logits(config, module, params):
    logits = jax.jit(lambda params, tokens: module(params)(tokens))(params, TOKENS)
    return np.asarray(logits)[..., : config.vocab]


def their_logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.float().numpy()


def tensors(folder):
    from safetensors import safe_open

    found = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def test_published_weights_give_the_same_logits_here(published):
    config = lookup(str(published))
    module, shapes = described(config)
    ours = our_logits(config, module, weights_reader.load(published, config, shapes))
    theirs = their_logits(published)
    assert theirs.std() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("mesh", ["fsdp=8", "2x4", "fsdp=4,model=2"])
def test_every_shard_of_a_mesh_is_the_part_of_the_whole(published, mesh):
    config = lookup(str(published))
    whole = weights_reader.load(published, config, described(config)[1])
    shapes = described(config, mesh)[1]
    parts = weights_reader.load(published, config, shapes)
    assert any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(parts))
    for a, b, shape in zip(*map(jax.tree.leaves, (whole, parts, shapes)), strict=True):
        assert b.sharding == shape.sharding
        np.testing.assert_array_equal(a, b)


def test_a_published_model_comes_back_bit_for_bit(published, tmp_path):
    config = lookup(str(published))
    params = jax.device_get(weights_reader.load(published, config, described(config)[1]))
    weights_writer.save(tmp_path / "out", config, params)
    before, after = tensors(published), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == np.float32
        np.testing.assert_array_equal(after[name], tensor, err_msg=name)


def test_the_layers_of_a_pipeline_lie_on_two_axes(published, tmp_path):
    config = lookup(str(published))
    flat, shapes = (
        weights_reader.load(published, config, described(config)[1]),
        described(config)[1],
    )
    split = shapes | {
        "stack": jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (2, 1, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding
            ),
            shapes["stack"],
        )
    }
    params = jax.device_get(weights_reader.load(published, config, split))
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a.reshape(b.shape), b),
        params["stack"],
        flat["stack"],
    )
    weights_writer.save(tmp_path / "out", config, params)
    after = tensors(tmp_path / "out")
    for name, tensor in tensors(published).items():
        np.testing.assert_array_equal(after[name], tensor, err_msg=name)


@pytest.mark.parametrize("family", MODELS)
def test_our_model_gives_the_same_logits_in_transformers(family, tmp_path):
    config = dataclasses.replace(PRESETS[f"{family}-tiny"], vocab=250, layers=2)
    module, _ = described(config)
    with nnx.use_eager_sharding(False):
        model = text_workload.inference_model(config)(nnx.Rngs(1))
    # Three times what training begins with: logits that a wrong weight would change.
    params = jax.tree.map(lambda leaf: leaf * 3, nnx.to_pure_dict(nnx.state(model)))
    out = tmp_path / "out"
    weights_writer.save(out, config, jax.device_get(params), shard_bytes=100_000)
    assert len(list(out.glob("*.safetensors"))) > 1
    assert (out / "model.safetensors.index.json").exists()
    ours = our_logits(config, module, params)
    assert ours.std() > 0.5
    np.testing.assert_allclose(their_logits(out), ours, atol=1e-4)
    again = lookup(str(out))
    assert dataclasses.replace(again, name=config.name, source=config.source) == config


def test_half_precision_is_read_and_written_as_it_is(tmp_path):
    torch.manual_seed(0)
    theirs = MODELS["llama"]().to(torch.bfloat16)
    theirs.save_pretrained(tmp_path / "in")
    config = lookup(str(tmp_path / "in"))
    params = jax.device_get(weights_reader.load(tmp_path / "in", config, described(config)[1]))
    weights_writer.save(tmp_path / "out", config, params, dtype="bf16")
    before, after = tensors(tmp_path / "in"), tensors(tmp_path / "out")
    assert all(tensor.dtype == jnp.bfloat16 for tensor in after.values())
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name].astype(np.float32), tensor.astype(np.float32))
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16


def edited(folder, tmp_path, changes):
    """Copies a folder's config.json with some keys changed, None for those that go."""
    config = json.loads((folder / "config.json").read_text()) | changes
    other = tmp_path / "edited"
    other.mkdir()
    kept = {key: value for key, value in config.items() if value is not None}
    (other / "config.json").write_text(json.dumps(kept))
    return other


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("llama", {"model_type": "lama"}, "did you mean 'llama'"),
        ("llama", {"model_type": "bert"}, "model_type = 'bert'"),
        ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "architectures"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "rope_parameters"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
        ("llama", {"rope_parameters": {"rope_theta": "ten"}}, "rope_theta"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"tie_word_embeddings": True}, "tie_word_embeddings"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"rms_norm_eps": 1e-6}, "rms_norm_eps"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps = 1e-06"),
        ("llama", {"head_dim": 32}, "head_dim"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"hidden_size": None, "head_dim": None}, "hidden_size is missing"),
        ("llama", {"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5"),
        ("mixtral", {"sliding_window": 16}, "sliding_window"),
        ("mixtral", {"num_experts_per_tok": 9}, "top_k is 9"),
        ("gpt", {"activation_function": "relu"}, "activation_function"),
        ("gpt", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ("gpt", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("gpt", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt", {"n_embd": None}, "n_embd is missing"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(family, changes, says, tmp_path):
    MODELS[family]().config.save_pretrained(tmp_path)
    with pytest.raises(InputError) as caught:
        lookup(str(edited(tmp_path, tmp_path, changes)))
    assert says in str(caught.value)
    assert str(caught.value).startswith("model: ")


def test_what_is_implied_is_filled_in(tmp_path):
    MODELS["llama"]().config.save_pretrained(tmp_path)
    changes = {"num_key_value_heads": None, "rope_parameters": None, "head_dim": None}
    config = lookup(str(edited(tmp_path, tmp_path, changes)))
    assert (config.kv_heads, config.rope_theta) == (8, 10_000.0)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config.json: cannot be read"):
        lookup(str(tmp_path))


class TestFiles:
    """Weights that are not those of the model."""

    @pytest.fixture
    def folder(self, tmp_path):
        MODELS["llama"]().save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    def refused(self, folder, changes=None):
        from safetensors.numpy import save_file

        config = lookup(str(folder))
        if changes is not None:
            save_file(tensors(folder) | changes, folder / "model.safetensors")
        with pytest.raises(InputError) as caught:
            weights_reader.check(folder, config, "init")
        return str(caught.value)

    def test_of_another_shape(self, folder):
        wrong = {"model.norm.weight": np.zeros(63, np.float32)}
        assert "model.norm.weight" in self.refused(folder, wrong)

    def test_that_are_quantized(self, folder):
        wrong = {"model.norm.weight": np.zeros(64, np.int8)}
        assert "model.norm.weight" in self.refused(folder, wrong)

    def test_that_have_what_the_model_has_not(self, folder):
        bias = {"model.layers.0.self_attn.q_proj.bias": np.zeros(64, np.float32)}
        assert "q_proj.bias" in self.refused(folder, bias)

    def test_that_lack_a_tensor(self, folder):
        from safetensors.numpy import save_file

        kept = tensors(folder)
        del kept["lm_head.weight"]
        save_file(kept, folder / "model.safetensors")
        assert "no tensor lm_head.weight" in self.refused(folder)

    def test_that_are_cut_short(self, folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        assert "model.safetensors" in self.refused(folder)

    def test_that_are_not_there(self, folder):
        (folder / "model.safetensors").unlink()
        assert "model.safetensors" in self.refused(folder)

    def test_whose_index_is_damaged(self, folder):
        (folder / "model.safetensors.index.json").write_text('{"weight_map":')
        assert "index.json" in self.refused(folder)


def test_weights_published_without_a_prefix_are_read(tmp_path):
    """As those of `openai-community/gpt2` are, with the causal mask among them."""
    from safetensors.numpy import save_file

    MODELS["gpt"]().save_pretrained(tmp_path)
    config = lookup(str(tmp_path))
    shapes = described(config)[1]
    before = weights_reader.load(tmp_path, config, shapes)
    bare = {name.removeprefix("transformer."): t for name, t in tensors(tmp_path).items()}
    save_file(bare | {"h.0.attn.bias": np.ones((1, 1, 32, 32))}, tmp_path / "model.safetensors")
    after = weights_reader.load(tmp_path, config, shapes)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_nothing_is_left_of_an_export_that_fails(tmp_path):
    config = dataclasses.replace(PRESETS["llama-tiny"], layers=2)
    _, shapes = described(config)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    params["norm"]["scale"] = np.zeros(3)
    with pytest.raises(ValueError, match="reshape"):
        weights_writer.save(tmp_path / "out", config, params, shard_bytes=100_000)
    assert not list(tmp_path.iterdir())
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="out"):
        weights_writer.save(tmp_path, config, params)
    with pytest.raises(InputError, match="one layer of 6"):
        weights_writer.save(tmp_path / "out", PRESETS["alphaexa-250b"], {})
