import jax
import pytest
from flax import nnx

from exajax import InputError
from exajax.models.presets import PRESETS, lookup
from exajax.recipe.workloads import FAMILIES


def parameters(config):
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: FAMILIES[config.family](config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("name", PRESETS)
def test_the_closed_form_counts_the_parameters_of_the_module(name):
    assert PRESETS[name].parameters == parameters(PRESETS[name])


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("gpt2-124m", 0.1244),
        ("gpt2-1.5b", 1.558),
        ("gpt3-175b", 174.6),
        ("llama2-7b", 6.738),
        ("llama2-13b", 13.016),
        ("llama2-70b", 68.977),
        ("llama3-8b", 8.030),
        ("llama3-70b", 70.554),
        ("llama3-405b", 405.853),
    ],
)
def test_sizes_are_the_published_ones(name, billions):
    assert PRESETS[name].parameters == pytest.approx(billions * 1e9, rel=2e-3)


def test_an_odd_vocabulary_is_padded():
    assert PRESETS["gpt2-124m"].vocab == 50_257
    assert PRESETS["gpt2-124m"].padded_vocab == 50_304


def test_a_file_of_dimensions_works_wherever_a_name_does(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'family = "llama"\nlayers = 2\nwidth = 64\nheads = 4\nkv_heads = 2\nffn = 128\n'
        "vocab = 256\nseq = 32\n"
    )
    config = lookup(str(path))
    assert (config.name, config.head_dim) == ("mine", 16)
    assert config.parameters == parameters(config)


def test_an_unknown_model_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'llama2-70b'"):
        lookup("lama2-70b")
