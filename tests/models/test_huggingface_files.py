"""Folders in Hugging Face's form that are damaged, hostile, or of what we do not compute."""

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exajax import InputError, MeshSpec
from exajax.models.dimensions import ModelConfig
from exajax.models.huggingface import weights_reader, weights_writer
from exajax.models.huggingface.config import CONFIG, to_balance, to_coefficient
from exajax.models.model_file import model_of_table
from exajax.models.presets import lookup
from exajax.recipe import text_workload, workloads
from exajax.recipe.recipe import Recipe
from exajax.spmd.parameters import abstract_parameters

pytest.importorskip("safetensors")
from safetensors.numpy import load_file, save_file

SIZES = {"layers": 2, "width": 16, "heads": 2, "ffn": 24, "vocab": 100, "seq": 16}
MIXTURE = {"kv_heads": 1, "experts": 4, "top_k": 2, "balance": 0.02}
MODELS = {
    "gpt": model_of_table({"name": "m", "source": "t", "family": "gpt"} | SIZES),
    "llama": model_of_table({"name": "m", "source": "t", "family": "llama", "kv_heads": 1} | SIZES),
    "mixtral": model_of_table({"name": "m", "source": "t", "family": "mixtral"} | SIZES | MIXTURE),
}


def weights(config: ModelConfig) -> Any:
    with nnx.use_eager_sharding(False):
        model = text_workload.inference_model(config)(nnx.Rngs(0))
    return jax.device_get(nnx.to_pure_dict(nnx.state(model)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for every family, llama's of several files."""
    folder = tmp_path_factory.mktemp("whole")
    for family, config in MODELS.items():
        size = 8_000 if family == "llama" else weights_writer.SHARD_BYTES
        weights_writer.save(folder / family, config, weights(config), shard_bytes=size)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "whole"))


def edit(folder: Path, changes: dict[str, Any], file: str = CONFIG) -> Path:
    """Changes keys of a JSON file, None for those that go."""
    table = json.loads((folder / file).read_text()) | changes
    kept = {key: value for key, value in table.items() if value is not None}
    (folder / file).write_text(json.dumps(kept))
    return folder


def refused(folder: Path) -> str:
    """Returns the error of what reads a folder before a run, which is one line."""
    with pytest.raises(InputError) as caught:
        weights_reader.check(folder, lookup(str(folder), "init"), "init")
    assert str(caught.value).startswith(f"init: {folder}") or "tensor" in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("family", MODELS)
def test_what_was_written_is_read_again(whole, family):
    config = lookup(str(whole / family))
    assert config.parameters == MODELS[family].parameters
    weights_reader.check(whole / family, config, "init")
    _, shapes = abstract_parameters(
        text_workload.inference_model(config), MeshSpec().build(jax.devices()[:1])
    )
    again = weights_reader.load(whole / family, config, shapes)
    expected = weights(MODELS[family])
    for found, wanted in zip(jax.tree.leaves(again), jax.tree.leaves(expected), strict=True):
        rows = config.vocab if config.padded_vocab in wanted.shape else None
        cut = tuple(slice(rows if size == config.padded_vocab else None) for size in wanted.shape)
        np.testing.assert_array_equal(found[cut], wanted[cut])


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("llama", {"model_type": None}, "model_type is missing"),
        ("llama", {"model_type": "lama"}, "did you mean 'llama'?"),
        ("llama", {"model_type": ["llama"]}, "model_type = ['llama'] is not implemented"),
        ("llama", {"model_type": 3}, "model_type = 3 is not implemented"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "is 'LlamaForCausalLM'; give a list"),
        ("llama", {"architectures": ["LlamaModel"]}, "architectures = ['LlamaModel'] is not"),
        ("llama", {"architectures": [3]}, "is 3; give a text"),
        ("llama", {"num_hidden_layers": "2"}, "num_hidden_layers is '2'; give a whole number"),
        ("llama", {"num_hidden_layers": 2.5}, "num_hidden_layers is 2.5; give a whole number"),
        ("llama", {"num_hidden_layers": True}, "num_hidden_layers is True; give a whole number"),
        ("llama", {"num_hidden_layers": 0}, "num_hidden_layers is 0; give at least 1"),
        ("llama", {"num_hidden_layers": 10**15}, "give at most 10000"),
        ("llama", {"num_hidden_layers": 2**63}, "num_hidden_layers does not fit 64 bits"),
        ("llama", {"hidden_size": None}, "hidden_size is missing"),
        ("llama", {"hidden_size": -16}, "hidden_size is -16; give at least 1"),
        ("llama", {"hidden_size": 18, "num_attention_heads": 6}, "even: rotary positions"),
        ("llama", {"hidden_size": [16]}, "hidden_size is [16]; give a whole number"),
        ("llama", {"num_key_value_heads": 3}, "make heads divide width and kv_heads divide heads"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads is 0; give at least 1"),
        ("llama", {"vocab_size": 10**9}, "vocab_size is 1000000000; give at most"),
        ("llama", {"max_position_embeddings": "long"}, "max_position_embeddings is 'long'"),
        ("llama", {"rope_theta": "ten"}, "rope_theta is 'ten'; give a number"),
        ("llama", {"rope_theta": -1.0}, "rope_theta is -1.0; give at least 1.0"),
        ("llama", {"rope_theta": math.nan}, "rope_theta is nan, not a finite number"),
        ("llama", {"rope_theta": math.inf}, "rope_theta is inf, not a finite number"),
        ("llama", {"rope_theta": [1e4]}, "rope_theta is [10000.0]; give a number"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = {"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling = {"),
        ("llama", {"rope_scaling": 2.0}, "is 2.0; give a table"),
        (
            "llama",
            {"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}},
            "rope_theta is given as 10000, 500000; give it once",
        ),
        ("llama", {"rope_scaling": {"rope_type": 3}}, "rope_type is 3; give a text"),
        ("llama", {"rope_parameters": {"rope_theta": "x"}}, "rope_theta is 'x'; give a number"),
        ("llama", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters = {'rope_type'"),
        ("llama", {"rope_parameters": [1]}, "rope_parameters is [1]; give a table"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not"),
        ("llama", {"rms_norm_eps": 1e-6}, "rms_norm_eps = 1e-06 is not implemented"),
        ("llama", {"rms_norm_eps": None}, "rms_norm_eps = 1e-06 is not implemented"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not implemented"),
        ("llama", {"tie_word_embeddings": True}, "tie_word_embeddings = True is not implemented"),
        ("llama", {"attention_bias": True}, "attention_bias = True is not implemented"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True is not implemented"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout = 0.1 is not implemented"),
        ("llama", {"head_dim": 4}, "head_dim = 4 is not implemented"),
        ("llama", {"head_dim": "8"}, "head_dim is '8'; give a whole number"),
        ("llama", {"sliding_window": 8}, "sliding_window = 8 is not implemented"),
        ("llama", {"sliding_window": "all"}, "sliding_window is 'all'; give a whole number"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config = {'bits': 4} is not"),
        ("mixtral", {"num_local_experts": None}, "num_local_experts is missing"),
        ("mixtral", {"num_local_experts": 0}, "num_local_experts is 0; give at least 1"),
        ("mixtral", {"num_experts_per_tok": 9}, "top_k is 9 of 4 experts"),
        ("mixtral", {"router_aux_loss_coef": -1.0}, "router_aux_loss_coef is -1.0; give at least"),
        ("mixtral", {"router_aux_loss_coef": "x"}, "router_aux_loss_coef is 'x'; give a number"),
        ("mixtral", {"router_aux_loss_coef": math.nan}, "router_aux_loss_coef is nan"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise = 0.1 is not implemented"),
        ("mixtral", {"sliding_window": 8}, "sliding_window = 8 is not implemented"),
        ("mixtral", {"attention_bias": True}, "attention_bias = True is not implemented"),
        ("mixtral", {"attention_dropout": 0.1}, "attention_dropout = 0.1 is not implemented"),
        ("mixtral", {"tie_word_embeddings": True}, "tie_word_embeddings = True is not"),
        ("mixtral", {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not implemented"),
        ("gpt", {"n_layer": "2"}, "n_layer is '2'; give a whole number"),
        ("gpt", {"n_embd": None}, "n_embd is missing"),
        ("gpt", {"n_embd": "16", "n_inner": None}, "n_embd is '16'; give a whole number"),
        ("gpt", {"n_head": 3}, "make heads divide width"),
        ("gpt", {"activation_function": "relu"}, "activation_function = 'relu' is not"),
        ("gpt", {"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon = 1e-06 is not"),
        ("gpt", {"tie_word_embeddings": False}, "tie_word_embeddings = False is not"),
        ("gpt", {"scale_attn_weights": False}, "scale_attn_weights = False is not"),
        ("gpt", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx ="),
        ("gpt", {"add_cross_attention": True}, "add_cross_attention = True is not"),
        ("gpt", {"pruned_heads": {"0": [1]}}, "pruned_heads = {'0': [1]} is not implemented"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(family, changes, says, folder):
    line = refused(edit(folder / family, changes))
    assert says in line
    assert line.startswith(f"init: {folder / family}/config.json: ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "config.json: is not JSON"),
        ("[]", "model_type is missing"),
        ("null", "model_type is missing"),
        ('{"model_type":', "config.json: is not JSON"),
        ("[" * 100_000, "nested deeper"),
        ('{"model_type": "llama", "a": ' + "9" * 4400 + "}", "thousands of digits"),
        (b"\xff\xfe", "is not text in UTF-8"),
        (b" " * (1 << 21), "is larger than"),
    ],
)
def test_a_config_that_is_none_is_refused(content, says, folder):
    config = folder / "llama" / CONFIG
    config.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert says in refused(folder / "llama")


JUNK = st.sampled_from(
    [None, True, 0, -1, 2.5, 1e308, 10**9, 2**62, "", "x", "é\n", [], [[1]], {}, {"a": {}}]
)


@given(st.sampled_from([*MODELS]), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_value_of_any_key_is_taken_or_refused(whole, tmp_path, family, data):
    config = json.loads((whole / family / CONFIG).read_text())
    extra = ["rope_scaling", "rope_parameters", "head_dim", "sliding_window", "n_inner"]
    key = data.draw(st.sampled_from([*config, *extra]))
    (tmp_path / CONFIG).write_text(json.dumps(config | {key: data.draw(JUNK)}))
    try:
        lookup(str(tmp_path))
    except InputError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/../../x", "", "a\\b", "a\0b", "x" * 300]
)
def test_an_index_that_leads_out_of_its_folder_is_refused(name, folder):
    index = json.loads((folder / "llama" / weights_reader.INDEX).read_text())
    index["weight_map"]["lm_head.weight"] = name
    line = refused(edit(folder / "llama", index, weights_reader.INDEX))
    assert "model.safetensors.index.json: weight_map['lm_head.weight']" in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"weight_map":', "is not JSON"),
        ("[]", "is []; give a table"),
        ("{}", "weight_map is missing"),
        ('{"weight_map": []}', "weight_map is []; give a table"),
        ('{"weight_map": {}}', "weight_map is empty"),
        ('{"weight_map": {"a": 3}}', "weight_map.a is 3; give a text"),
        ('{"weight_map": {"a": ["x"]}}', "give a text"),
        ('{"weight_map": ' + '{"a":' * 5000, "nested deeper"),
        ('{"weight_map": {"a": "none.safetensors"}}', "none.safetensors cannot be read"),
    ],
)
def test_an_index_that_is_none_is_refused(content, says, folder):
    (folder / "llama" / weights_reader.INDEX).write_text(content)
    assert says in refused(folder / "llama")


def shards(folder: Path) -> list[Path]:
    return sorted((folder / "llama").glob("model-*.safetensors"))


def test_a_shard_that_is_not_there_is_named(folder):
    shards(folder)[1].unlink()
    assert f"{shards(folder)[0].name[:6]}00002-of" in refused(folder / "llama")


def test_a_shard_that_lacks_what_the_index_says_is_named(folder):
    first, *_ = shards(folder)
    content = load_file(first)
    gone = next(iter(content))
    save_file({k: v for k, v in content.items() if k != gone}, first)
    assert f"{first.name} has no tensor '{gone}', and model.safetensors.index.json says" in refused(
        folder / "llama"
    )


def test_a_tensor_is_that_of_the_shard_that_the_index_names(folder):
    """As transformers reads it, whatever else lies in the others."""
    first, second, *_ = shards(folder)
    content = load_file(second)
    other = {name: np.full_like(array, 7) for name, array in load_file(first).items()}
    save_file(content | other | {"no.part.of.it": np.zeros(3, np.float32)}, second)
    config = lookup(str(folder / "llama"))
    weights_reader.check(folder / "llama", config, "init")
    _, shapes = abstract_parameters(
        text_workload.inference_model(config), MeshSpec().build(jax.devices()[:1])
    )
    for leaf in jax.tree.leaves(weights_reader.load(folder / "llama", config, shapes)):
        assert not np.any(np.asarray(leaf) == 7)


def test_an_index_and_a_whole_file_are_not_one_model(folder):
    save_file({"x": np.zeros(1, np.float32)}, folder / "llama" / weights_reader.SINGLE)
    assert "has both model.safetensors and model.safetensors.index.json" in refused(
        folder / "llama"
    )


def test_the_links_of_a_hub_cache_are_followed(folder, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0a1b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((folder / "llama").iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    config = lookup(str(snapshot))
    assert config.name == "0a1b"
    weights_reader.check(snapshot, config, "init")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (np.zeros(15, np.float32), "is F32 [15], and gpt has floats [16]"),
        (np.zeros((16, 1), np.float32), "is F32 [16, 1], and gpt has floats [16]"),
        (np.zeros(16, np.int8), "is I8 [16], and gpt has floats [16]"),
        (np.zeros(0, np.float32), "is F32 [0], and gpt has floats [16]"),
        (None, "has no tensor transformer.ln_f.weight"),
    ],
)
def test_a_tensor_of_another_kind_is_named(change, says, folder):
    file = folder / "gpt" / weights_reader.SINGLE
    content = load_file(file)
    del content["transformer.ln_f.weight"]
    save_file(content | ({} if change is None else {"transformer.ln_f.weight": change}), file)
    line = refused(folder / "gpt")
    assert says in line
    assert "transformer.ln_f.weight" in line


def header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        struct.pack("<Q", 2**63) + b"{}",
        header(b"{"),
        header(b"[]"),
        header(b"[" * 100_000),
        header(b'{"a": 3}'),
        header(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}', b"\0" * 8),
        header(b'{"a": {"dtype": "F32", "shape": [9223372036854775807, 4], "data_offsets":[0,0]}}'),
        header(b'{"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}', b"\0" * 4),
        header(b'{"\xff": {}}'),
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    ],
)
def test_a_file_that_is_no_safetensors_is_named(content, folder):
    (folder / "gpt" / weights_reader.SINGLE).write_bytes(content)
    assert f"{weights_reader.SINGLE} cannot be read" in refused(folder / "gpt")


def test_a_folder_in_place_of_weights_is_named(folder):
    (folder / "gpt" / weights_reader.SINGLE).unlink()
    (folder / "gpt" / weights_reader.SINGLE).mkdir()
    assert f"{weights_reader.SINGLE} is not a file" in refused(folder / "gpt")


def test_dimensions_beyond_the_weights_are_refused_without_listing_every_tensor(folder):
    edit(folder / "mixtral", {"num_hidden_layers": 10_000, "num_local_experts": 60_000})
    assert "has no tensor model.layers.2.input_layernorm.weight" in refused(folder / "mixtral")


class TestBalance:
    """`router_aux_loss_coef` of a mixture is used in training, and written back."""

    def loss(self, folder: Path) -> tuple[float, float]:
        """Returns what training minimises, and the same of held-out text."""
        recipe = Recipe.of(lookup(str(folder)), MeshSpec(), global_batch=2, precision="fp32")
        tokens = np.random.default_rng(0).integers(0, 100, (2, 17))
        batch = {"inputs": jnp.array(tokens[:, :-1]), "targets": jnp.array(tokens[:, 1:])}
        with nnx.use_eager_sharding(False):
            model = workloads.workload(recipe, "cpu").build(nnx.Rngs(0))
        measured = workloads.evaluation_metrics(recipe, "cpu")["loss"](model, batch)
        return float(workloads.workload(recipe, "cpu").loss(model, batch)), float(measured)

    def test_it_is_taken(self, folder):
        held_out = self.loss(edit(folder / "mixtral", {"router_aux_loss_coef": 0.0}))
        assert held_out[0] == held_out[1]
        # Nearly balanced, as a fresh router is: coefficient x top_k, as in transformers.
        for coefficient in (0.02, 0.5):
            trained, same = self.loss(
                edit(folder / "mixtral", {"router_aux_loss_coef": coefficient})
            )
            assert same == held_out[1]
            assert trained - same == pytest.approx(coefficient * 2, rel=0.1)

    def test_where_it_is_absent_it_is_that_of_transformers(self, folder):
        config = lookup(str(edit(folder / "mixtral", {"router_aux_loss_coef": None})))
        assert config.balance == 0.001

    @pytest.mark.parametrize(("top_k", "layers"), [(2, 32), (1, 7), (6, 27), (8, 61)])
    @pytest.mark.parametrize("coefficient", [0.0, 0.001, 0.02, 1 / 3])
    def test_it_comes_back(self, coefficient, top_k, layers):
        balance = to_balance(coefficient, top_k, layers)
        assert to_coefficient(balance, top_k, layers) == pytest.approx(coefficient, rel=1e-11)

    def test_it_is_written(self, whole):
        written = json.loads((whole / "mixtral" / CONFIG).read_text())
        assert written["router_aux_loss_coef"] == 0.02
        assert written["output_router_logits"] is True
