"""Descriptions of models as a careless or hostile person may write them, for tests to draw from."""

from typing import Any

from hypothesis import strategies as st

from tests.fuzz.mutations import mutated

_SIZES = {"layers": 2, "width": 64, "heads": 4, "ffn": 128, "vocab": 256}

TABLES: list[dict[str, Any]] = [
    {"family": "gpt", "seq": 32, **_SIZES},
    {"family": "llama", "seq": 32, "kv_heads": 2, "rope_theta": 1e4, **_SIZES},
    {"family": "mixtral", "seq": 32, "experts": 4, "top_k": 2, "moe_every": 1, **_SIZES},
    {"family": "vit", "image": 32, "patch": 8, "channels": 3, **_SIZES},
]
"""A right table of each family, less its name and source."""

_ROTARY = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 32,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}

CONFIGS: list[dict[str, Any]] = [
    {"model_type": "gpt2", "n_layer": 2, "n_embd": 64, "n_head": 4}
    | {"vocab_size": 256, "n_positions": 32, "architectures": ["GPT2LMHeadModel"]},
    {"model_type": "llama", **_ROTARY},
    {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, **_ROTARY},
]
"""A right `config.json` of each family that transformers has."""


def tables() -> st.SearchStrategy[Any]:
    """Tables of models, as they are or with fields replaced, removed or added."""
    return st.sampled_from(TABLES) | st.sampled_from(TABLES).flatmap(mutated)


def configs() -> st.SearchStrategy[Any]:
    """Contents of `config.json`, as they are or with fields replaced, removed or added."""
    return st.sampled_from(CONFIGS) | st.sampled_from(CONFIGS).flatmap(mutated)
