"""Dimensions in TOML: what is accepted makes a module of that size, the rest is refused by name."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from exajax import InputError
from exajax.files.reading import Malformed
from exajax.models.model_file import model_of_record, model_of_table
from exajax.models.presets import PRESETS, lookup
from exajax.recipe.workloads import FAMILIES
from tests.conftest import command

SIZES = {"layers": 2, "width": 64, "heads": 4, "ffn": 128, "vocab": 256, "seq": 32}
FILES: dict[str, dict[str, Any]] = {
    "gpt": {"family": '"gpt"', **SIZES},
    "llama": {"family": '"llama"', **SIZES, "kv_heads": 2},
    "mixtral": {"family": '"mixtral"', **SIZES, "kv_heads": 2, "experts": 4, "top_k": 2},
    "vit": {"family": '"vit"', **SIZES, "seq": 64, "image": 32, "patch": 4, "channels": 3},
}
"""One small model of every family, as TOML values."""


def write(path: Path, family: str, /, **changes: Any) -> str:
    """Writes a family's file with some fields changed, None for those that go."""
    fields = {key: value for key, value in (FILES[family] | changes).items() if value is not None}
    path.write_text("\n".join(f"{key} = {value}" for key, value in fields.items()))
    return str(path)


@pytest.mark.parametrize("family", FILES)
def test_a_file_of_dimensions_works_wherever_a_name_does(family, tmp_path):
    config = lookup(write(tmp_path / "mine.toml", family))
    assert (config.name, config.family, config.head_dim) == ("mine", family, 16)


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("llama", {"wdith": 3}, "wdith is unknown; did you mean 'width'?"),
        ("llama", {"width": None}, "width is missing; add it"),
        ("llama", {"family": None}, "family is missing; give one of gpt, llama, mixtral, vit"),
        ("llama", {"family": '"llame"'}, "family is 'llame'; did you mean 'llama'?"),
        ("llama", {"family": '["llama"]'}, "family is ['llama']; give one of gpt"),
        ("llama", {"family": "3"}, "family is 3; give one of gpt"),
        ("llama", {"layers": 0}, "layers is 0; give at least 1"),
        ("llama", {"layers": -2}, "layers is -2; give at least 1"),
        ("llama", {"layers": 2.5}, "layers is 2.5; give a whole number"),
        ("llama", {"layers": "true"}, "layers is True; give a whole number"),
        ("llama", {"layers": '"2"'}, "layers is '2'; give a whole number"),
        ("llama", {"layers": "[2]"}, "layers is [2]; give a whole number"),
        ("llama", {"layers": 10**15}, "layers is 1000000000000000; give at most 10000"),
        ("llama", {"layers": 2**63}, "layers does not fit 64 bits"),
        ("llama", {"width": "9" * 4400}, "thousands of digits"),
        ("llama", {"width": "[" * 5000}, "nested deeper"),
        ("llama", {"width": 2**25}, "width is 33554432; give at most 16777216"),
        ("llama", {"ffn": 0}, "ffn is 0; give at least 1"),
        ("llama", {"vocab": 10**9}, "vocab is 1000000000; give at most 16777216"),
        ("llama", {"seq": 10**9}, "seq is 1000000000; give at most 16777216"),
        ("llama", {"heads": 3}, "make heads divide width"),
        ("llama", {"kv_heads": 3}, "kv_heads divide heads"),
        ("llama", {"width": 60, "heads": 20, "kv_heads": 20}, "make width / heads even"),
        ("llama", {"rope_theta": "nan"}, "rope_theta is nan, not a finite number"),
        ("llama", {"rope_theta": "1e400"}, "rope_theta is inf, not a finite number"),
        ("llama", {"rope_theta": -1.0}, "rope_theta is -1.0; give at least 1.0"),
        ("llama", {"rope_theta": 0}, "rope_theta is 0; give at least 1.0"),
        ("llama", {"rope_theta": '"abc"'}, "rope_theta is 'abc'; give a number"),
        ("llama", {"rope_theta": "[1e4]"}, "rope_theta is [10000.0]; give a number"),
        ("llama", {"name": '"../../outside"'}, "name is '../../outside'; give a name of letters"),
        ("llama", {"name": '"/tmp/outside"'}, "name is '/tmp/outside'; give a name of letters"),
        ("llama", {"name": '".."'}, "name is '..'; give a name of letters"),
        ("llama", {"name": '""'}, "name is ''; give a name of letters"),
        ("llama", {"name": r'"$\\frac$"'}, "give a name of letters"),
        ("llama", {"name": r'"a\u0000b"'}, "give a name of letters"),
        ("llama", {"name": f'"{"x" * 65}"'}, "it should have at most 64 characters"),
        ("llama", {"name": "1979-05-27"}, "name is datetime.date(1979, 5, 27); give a text"),
        ("llama", {"name": "3"}, "name is 3; give a text"),
        ("llama", {"source": "[1]"}, "source is [1]; give a text"),
        ("llama", {"source": r'"a\nb"'}, "characters that cannot be printed"),
        ("gpt", {"kv_heads": 1}, "kv_heads is 1, and a gpt has as many as its 4 heads"),
        ("gpt", {"experts": 8}, "experts is nothing that a gpt has; leave it out, or give family"),
        ("gpt", {"top_k": 2}, "top_k is nothing that a gpt has"),
        ("gpt", {"rope_theta": 1e4}, "rope_theta is nothing that a gpt has"),
        ("gpt", {"image": 32}, "image is nothing that a gpt has"),
        ("gpt", {"tie_word_embeddings": "true"}, "tie_word_embeddings is unknown"),
        ("llama", {"experts": 8}, "experts is nothing that a llama has"),
        ("llama", {"moe_every": 2}, "moe_every is nothing that a llama has"),
        ("llama", {"balance": 0.1}, "balance is nothing that a llama has"),
        ("llama", {"patch": 2}, "patch is nothing that a llama has"),
        ("mixtral", {"experts": None}, "experts is missing"),
        ("mixtral", {"experts": 0}, "experts is 0; give at least 1"),
        ("mixtral", {"top_k": None}, "top_k is missing"),
        ("mixtral", {"top_k": 5}, "top_k is 5 of 4 experts; give a top_k from 1 to experts"),
        ("mixtral", {"moe_every": 3}, "moe_every is 3, and does not divide 2 layers"),
        ("mixtral", {"balance": -1.0}, "balance is -1.0; give at least 0.0"),
        ("mixtral", {"channels": 3}, "channels is nothing that a mixtral has"),
        ("mixtral", {"experts": 65_536, "width": 2**20, "ffn": 2**20}, "has 4.3e+17 parameters"),
        ("vit", {"kv_heads": 2}, "kv_heads is 2, and a vit has as many as its 4 heads"),
        ("vit", {"rope_theta": 1e4}, "rope_theta is nothing that a vit has"),
        ("vit", {"experts": 4}, "experts is nothing that a vit has"),
        ("vit", {"patch": 0}, "image, patch, channels are 32, 0, 3"),
        ("vit", {"image": 10**12}, "image, patch, channels are 1000000000000, 4, 3"),
        ("vit", {"channels": None}, "give a vit all three"),
        ("vit", {"seq": 63}, "leave it out, or give 64"),
    ],
)
def test_what_is_no_model_is_refused_in_a_line_that_names_the_field(
    family, changes, says, tmp_path
):
    with pytest.raises(InputError) as caught:
        lookup(write(tmp_path / "mine.toml", family, **changes))
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"model: {tmp_path}/mine.toml: ")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("lama2-70b", "did you mean 'llama2-70b'"),
        ("", "unknown model ''"),
        ("x" * 300, "File name too long"),
        ("x" * 300 + ".toml", "File name too long"),
        ("a\0b", "is no path"),
        ("none.toml", "No such file"),
        ("folder", "config.json: cannot be read: No such file"),
        ("folder.toml", "config.json: cannot be read: No such file"),
        ("binary.toml", "is not text in UTF-8"),
        ("large.toml", "larger than"),
    ],
)
def test_what_cannot_be_a_model_says_why(name, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("folder.toml").mkdir()
    Path("binary.toml").write_bytes(b"\xff\xfe")
    Path("large.toml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(InputError) as caught:
        lookup(name)
    assert says in str(caught.value)
    assert str(caught.value).startswith("model: ")
    assert len(str(caught.value)) < 500


def test_a_file_that_lacks_a_name_has_its_own_with_nothing_that_a_name_may_not_have(tmp_path):
    assert lookup(write(tmp_path / r"$\frac$ é.toml", "gpt")).name == "frac- -"
    assert lookup(write(tmp_path / "....toml", "gpt")).name == "model"


def test_a_command_says_it_in_one_line_and_writes_nothing(tmp_path):
    file = write(tmp_path / "mine.toml", "llama", name='"../../outside"')
    done = command("train", "--mesh", "1x1", "--model", file, "--steps", 1, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "mine.toml: name is '../../outside'" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@st.composite
def tables(draw: st.DrawFn) -> dict[str, Any]:
    """Draws fields of a model that is accepted, of any family."""
    family = draw(st.sampled_from([*FILES]))
    rotary = family in ("llama", "mixtral")
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    heads = kv_heads * group
    head = draw(st.integers(1, 8)) * (2 if rotary else 1)
    moe_every = draw(st.integers(1, 3)) if family == "mixtral" else 1
    table: dict[str, Any] = {
        "name": "drawn",
        "source": "drawn",
        "family": family,
        "layers": moe_every * draw(st.integers(1, 3)),
        "width": heads * head,
        "heads": heads,
        "ffn": draw(st.integers(1, 100)),
        "vocab": draw(st.integers(1, 300)),
    }
    if family != "vit":
        table["seq"] = draw(st.integers(1, 50))
    if rotary:
        table |= {"kv_heads": kv_heads, "rope_theta": draw(st.floats(1.0, 1e12))}
    if family == "mixtral":
        experts = draw(st.integers(1, 6))
        table |= {"experts": experts, "top_k": draw(st.integers(1, experts))}
        table |= {"moe_every": moe_every, "balance": draw(st.floats(0.0, 1.0))}
    if family == "vit":
        patch = draw(st.integers(1, 4))
        table |= {"patch": patch, "image": patch * draw(st.integers(1, 4))}
        table |= {"channels": draw(st.integers(1, 4))}
    return table


@given(tables())
@settings(max_examples=40)
def test_parameters_are_those_of_the_module_and_a_run_records_them_whole(table):
    config = model_of_table(table)
    with nnx.use_eager_sharding(False):
        module = nnx.eval_shape(lambda: FAMILIES[config.family](config, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
    assert config.parameters == sum(leaf.size for leaf in leaves)
    assert model_of_record(dataclasses.asdict(config)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_comes_back_from_the_record_of_a_run(name):
    assert model_of_record(dataclasses.asdict(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize(
    ("change", "says"),
    [({"layers": "8"}, "layers is '8'"), ({"experts": 4}, "experts is"), ({"seq": None}, "seq is")],
)
def test_a_record_that_was_edited_is_refused(change, says):
    with pytest.raises(Malformed, match=says):
        model_of_record(dataclasses.asdict(PRESETS["llama-tiny"]) | change)


def test_the_most_layers_are_planned_in_seconds(tmp_path):
    file = write(tmp_path / "deep.toml", "llama", layers=10_000)
    flags = ["--model", file, "--cluster", "dgx-h100", "--devices", 64, "--global-batch", 64]
    done = command("plan", *flags, "--seq", 32, "--json", timeout_s=120)
    assert done.returncode == 0, done.stderr
