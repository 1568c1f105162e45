"""Whatever stands in a model's file, it is refused on one line or is a model with parameters."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from exajax.files.reading import Malformed
from exajax.models.dimensions import ModelConfig
from exajax.models.huggingface.config import CONFIG, read_config
from exajax.models.model_file import MOST_PARAMETERS, model_of_table
from tests.fuzz import EXAMPLES, strategies_models
from tests.fuzz.mutations import as_json


def from_table(table: Any) -> ModelConfig:
    """Returns the model of a TOML file's table."""
    return model_of_table({"name": "drawn", "source": "drawn"} | table)


def from_config(config: Any) -> ModelConfig:
    """Returns the model of a `config.json`."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_bytes(as_json(config))
        return model_of_table(read_config(Path(folder)))


def check(read: Callable[[Any], ModelConfig], value: Any) -> None:
    """Asserts that a value is a model within bounds, or is refused on one line."""
    try:
        model = read(value)
    except Malformed as error:
        line = f"{error}; {error.fix}"
        assert line.isprintable()
        assert len(line) < 1000
        return
    assert 0 < model.parameters <= MOST_PARAMETERS
    assert model.width % model.heads == 0


@settings(max_examples=EXAMPLES, deadline=None)
@given(table=strategies_models.tables().filter(lambda table: isinstance(table, dict)))
def test_a_table_is_a_model_or_refused_on_one_line(table: Any) -> None:
    check(from_table, table)


@settings(max_examples=EXAMPLES, deadline=None)
@given(config=strategies_models.configs())
def test_a_config_is_a_model_or_refused_on_one_line(config: Any) -> None:
    check(from_config, config)


@pytest.mark.parametrize("table", strategies_models.TABLES, ids=lambda table: table["family"])
def test_a_table_that_others_are_drawn_from_is_right(table: Any) -> None:
    assert from_table(table).layers == 2


@pytest.mark.parametrize("config", strategies_models.CONFIGS, ids=lambda one: one["model_type"])
def test_a_config_that_others_are_drawn_from_is_right(config: Any) -> None:
    assert from_config(config).layers == 2
