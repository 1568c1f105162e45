"""Models that published rows name, for dimensions that a row leaves out."""

import re
from collections.abc import Iterator

from exajax.machine.published_columns import Columns, InexpressibleError, positive_number
from exajax.models.dimensions import ModelConfig
from exajax.models.presets import PRESETS

DIMENSION_COLUMNS = {
    "layers": "layers",
    "hidden": "width",
    "heads": "heads",
    "kv_heads": "kv_heads",
    "ffn": "ffn",
    "vocab": "vocab",
}
"""Field of `ModelConfig` for each column of a table that is a dimension."""

SHAPE = ("hidden", "heads", "ffn")
"""Columns in which a row and the model that it names must agree; layers are often reduced."""

MLPS = {"gpt": "gelu", "llama": "swiglu", "mixtral": "swiglu"}
"""The `mlp` of a family."""

LATENT = ("deepseek",)
"""Prefixes of names of models with latent attention (arXiv:2405.04434), which exajax lacks."""

MIXTURE = re.compile(r"moe|\d+x\d+b|-a\d+b|mixtral|grok|dbrx|llama-?4|gpt-oss")
"""Pattern in names of mixtures of experts, whose number of experts is in no column."""


def _known() -> Iterator[ModelConfig]:
    nemo = "NVIDIA/NeMo, llm/gpt/model/nemotron.py; assumed: the vocabulary of arXiv:2402.16819"
    launcher = "NVIDIA/NeMo-Framework-Launcher, conf/training/gpt3/20b.yaml"
    mixtral = "mistralai/Mixtral-8x22B-v0.1, config.json"
    grok = "xai-org/grok-1, run.py; its feed-forward is gated"
    moe = {"experts": 8, "top_k": 2}
    yield ModelConfig("gpt3-20b", "gpt", 44, 6144, 48, 48, 24576, 50257, 2048, source=launcher)
    yield ModelConfig("nemotron-8b", "gpt", 32, 4096, 32, 32, 16384, 256_000, 4096, source=nemo)
    yield ModelConfig("nemotron-22b", "gpt", 40, 6144, 48, 48, 24576, 256_000, 4096, source=nemo)
    yield ModelConfig(
        "mixtral-8x22b", "mixtral", 56, 6144, 48, 8, 16384, 32_000, 65536, 1e6, mixtral, **moe
    )
    yield ModelConfig(
        "grok1-314b", "mixtral", 64, 6144, 48, 8, 32768, 131_072, 8192, 1e4, grok, **moe
    )


KNOWN = {model.name: model for model in (*PRESETS.values(), *_known()) if model.family in MLPS}
"""Models by the names that tables give them."""

OF_SOURCE = {
    ("BLOOM", "gpt-200b"): ModelConfig(
        "gpt-200B", "gpt", 80, 14400, 96, 96, 57600, 250_880, 2048,
        source="bigscience-workshop/bigscience, train/tr11-176B-ml/chronicles-prequel.md",
    )
}  # fmt: skip
"""Models with a name that is known in one source only: by part of the source's name, and theirs."""


def named(values: Columns) -> ModelConfig | None:
    """The model that a row names; None if it is unknown or has another shape.

    Raises:
        InexpressibleError: no family of models can express it.
    """
    name = re.sub(r"[\s_]+", "-", values.get("model", "").strip().lower())
    if name.startswith(LATENT):
        raise InexpressibleError("its attention is latent, which no model of ours has")
    name = name.replace("llama3.1", "llama3")
    of_source = (
        model
        for (source, called), model in OF_SOURCE.items()
        if source in values["source"] and called == name
    )
    model = next(of_source, KNOWN.get(name))
    if model and _same_shape(values, model):
        return model
    if MIXTURE.search(name):
        raise InexpressibleError("it is a mixture, and its experts are unknown")
    return None


def _same_shape(values: Columns, model: ModelConfig) -> bool:
    stated = {column: positive_number(values, column) for column in SHAPE}
    return all(
        size in (None, getattr(model, DIMENSION_COLUMNS[column])) for column, size in stated.items()
    )


def completed(values: Columns, model: ModelConfig | None) -> dict[str, str]:
    """A row's columns, with empty dimensions completed from its model."""
    if model is None:
        return dict(values)
    dimensions = {column: str(getattr(model, field)) for column, field in DIMENSION_COLUMNS.items()}
    known = dimensions | {"mlp": MLPS[model.family]}
    return {**values, **{key: text for key, text in known.items() if not values.get(key)}}
