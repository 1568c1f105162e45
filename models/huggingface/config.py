"""`config.json` to dimensions and back: GPT-2, Llama and Mixtral. Imports no array library.

Keys, and what an absent key means, are those of transformers' `GPT2Config`, `LlamaConfig` and
`MixtralConfig` (huggingface.co/docs/transformers/model_doc/{gpt2,llama,mixtral}). Every key that
changes what the model computes is taken into `ModelConfig`, or refused by name where our module
computes something else. The others change no number here:

- `attn_pdrop`, `embd_pdrop`, `resid_pdrop`: dropout in training, which we do without; most GPT-2
  files carry the default of 0.1, whatever they were trained with.
- `output_router_logits`: what a forward pass returns. Whether training balances the experts goes
  by `router_aux_loss_coef` alone.
- `initializer_range`: the spread of new weights; ours has its own.
- `torch_dtype`, `dtype`: weights are read in the type that they are stored in.
- `pretraining_tp`, `reorder_and_upcast_attn`, `use_cache`: the same sums in another order.
- token numbers, `summary_*`, and whatever has no meaning for the file's `architectures`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exajax.errors import InputError, nearest
from exajax.files.reading import Malformed, read_json, shown
from exajax.files.schema import Items, Record, checked
from exajax.models.dimensions import ModelConfig
from exajax.models.model_file import Heads, Layers, Theta, Tokens, Weight, Width, name_of


class _Rope(Record):
    """`rope_parameters` or `rope_scaling`, of which only the plain rotation is computed."""

    rope_type: str = "default"
    type: str = "default"
    rope_theta: Theta | None = None


class _Config(Record):
    architectures: Items[str] | None = None


class _Gpt2(_Config):
    n_layer: Layers
    n_embd: Width
    n_head: Heads
    n_inner: Width | None = None
    vocab_size: Tokens
    n_positions: Tokens


class _Llama(_Config):
    num_hidden_layers: Layers
    hidden_size: Width
    num_attention_heads: Heads
    num_key_value_heads: Heads | None = None
    intermediate_size: Width
    vocab_size: Tokens
    max_position_embeddings: Tokens
    head_dim: Width | None = None
    sliding_window: Tokens | None = None
    rope_theta: Theta | None = None
    rope_parameters: _Rope | None = None
    rope_scaling: _Rope | None = None


class _Mixtral(_Llama):
    num_local_experts: Heads
    num_experts_per_tok: Heads
    router_aux_loss_coef: Weight = 0.001


@dataclass(frozen=True)
class Family:
    """How one family is written in `config.json`.

    Attributes:
        model_type: of the file.
        architecture: the class that has these weights and no others.
        schema: types and ranges of the keys that are taken.
        fields: a field of `ModelConfig` to the key that holds it.
        fixed: what our module computes, as key: (value, what an absent key means).
    """

    model_type: str
    architecture: str
    schema: type[_Config]
    fields: dict[str, str]
    fixed: dict[str, tuple[Any, Any]]


_ROTARY_FIELDS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
    "vocab": "vocab_size",
    "seq": "max_position_embeddings",
}

_ROTARY_FIXED = {
    "hidden_act": ("silu", "silu"),
    "tie_word_embeddings": (False, False),
    "attention_bias": (False, False),
    "mlp_bias": (False, False),
    "attention_dropout": (0.0, 0.0),
}

FAMILIES = {
    "gpt": Family(
        "gpt2",
        "GPT2LMHeadModel",
        _Gpt2,
        {
            "layers": "n_layer",
            "width": "n_embd",
            "heads": "n_head",
            "ffn": "n_inner",
            "vocab": "vocab_size",
            "seq": "n_positions",
        },
        {
            "activation_function": ("gelu_new", "gelu_new"),
            "layer_norm_epsilon": (1e-5, 1e-5),
            "tie_word_embeddings": (True, True),
            "scale_attn_weights": (True, True),
            "scale_attn_by_inverse_layer_idx": (False, False),
            "add_cross_attention": (False, False),
        },
    ),
    "llama": Family(
        "llama",
        "LlamaForCausalLM",
        _Llama,
        _ROTARY_FIELDS,
        {"rms_norm_eps": (1e-5, 1e-6)} | _ROTARY_FIXED,
    ),
    "mixtral": Family(
        "mixtral",
        "MixtralForCausalLM",
        _Mixtral,
        _ROTARY_FIELDS | {"experts": "num_local_experts", "top_k": "num_experts_per_tok"},
        {"rms_norm_eps": (1e-5, 1e-5), "router_jitter_noise": (0.0, 0.0)} | _ROTARY_FIXED,
    ),
}

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Our names of the types that weights are written in, and transformers' names."""

CONFIG = "config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """Returns the fields of `ModelConfig` that a folder's `config.json` gives.

    Args:
        folder: a folder in Hugging Face's form.

    Raises:
        Malformed: there is no such file, or it describes what exajax does not implement; the
            error names the key.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or "model_type" not in config:
        raise Malformed("model_type", "is missing", "give the config.json of a model")
    theirs = config["model_type"]
    families = {family.model_type: name for name, family in FAMILIES.items()}
    if not isinstance(theirs, str) or theirs not in families:
        raise _refused("model_type", theirs, nearest(str(theirs)[:99], families))
    name = families[theirs]
    family = FAMILIES[name]
    values = checked(family.schema, config)
    if family.architecture not in (values.architectures or [family.architecture]):
        raise _refused("architectures", config["architectures"], f"give a {family.architecture}")
    _check_computable(config, family)
    table = {ours: getattr(values, key) for ours, key in family.fields.items()}
    if isinstance(values, _Gpt2):
        table["ffn"] = values.n_inner or 4 * values.n_embd
    if isinstance(values, _Llama):
        table["kv_heads"] = values.num_key_value_heads or values.num_attention_heads
        table["rope_theta"] = _rope_theta(config, values)
        _check_heads_and_window(values)
    if isinstance(values, _Mixtral):
        table["balance"] = balance_of(values.router_aux_loss_coef, table["top_k"], table["layers"])
    return table | {"name": name_of(folder.resolve().name), "family": name, "source": CONFIG}


def write_config(config: ModelConfig, dtype: str, end: int | None = None) -> dict[str, Any]:
    """Returns the `config.json` of a model.

    Args:
        config: dimensions of the model.
        dtype: what its weights are written as, a key of `DTYPES`.
        end: token that ends a document, None where that is unknown. No token begins one.

    Raises:
        InputError: Hugging Face has no form for it.
    """
    if config.family not in FAMILIES or config.moe_every > 1:
        raise InputError(
            "run_dir",
            f"transformers has no architecture for {config.name}"
            + (f": one layer of {config.moe_every} is a mixture" if config.moe_every > 1 else ""),
            f"export a model of {', '.join(FAMILIES)}, a mixture in every layer or in none",
        )
    family = FAMILIES[config.family]
    table = {
        "model_type": family.model_type,
        "architectures": [family.architecture],
        **{key: getattr(config, ours) for ours, key in family.fields.items()},
        **{key: value for key, (value, _) in family.fixed.items()},
        "torch_dtype": DTYPES[dtype],
        # The defaults are ids of the published tokenizers, not of ours.
        "bos_token_id": None,
        "eos_token_id": end,
    }
    if config.family == "gpt":
        return table | {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    if config.family == "mixtral":
        coefficient = coefficient_of(config.balance, config.top_k, config.layers)
        table |= {"router_aux_loss_coef": coefficient, "output_router_logits": coefficient > 0}
    return table | {"rope_theta": config.rope_theta}


def balance_of(coefficient: float, top_k: int, layers: int) -> float:
    """Returns our `balance` for a `router_aux_loss_coef`: the same loss where experts are balanced.

    transformers' `load_balancing_loss_func` adds up the shares of each of a token's `top_k`
    choices, and takes its means over all layers together: balanced, it is `top_k`. Ours is 1 in
    each of the layers, and adds them up.
    """
    return float(f"{coefficient * top_k / layers:.12g}")


def coefficient_of(balance: float, top_k: int, layers: int) -> float:
    """Returns the `router_aux_loss_coef` of a `balance`: the inverse of `balance_of`."""
    return float(f"{balance * layers / top_k:.12g}")


def _check_computable(config: dict[str, Any], family: Family) -> None:
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            raise _refused(key, config[key], "give the weights as they were trained")
    if config.get("pruned_heads"):
        raise _refused("pruned_heads", config["pruned_heads"], "give a model with all its heads")
    for key, (value, absent) in family.fixed.items():
        if config.get(key, absent) != value:
            raise _refused(key, config.get(key, absent), f"give a model with {key} {value!r}")


def _rope_theta(config: dict[str, Any], values: _Llama) -> float:
    """Returns the base of the rotary frequencies, as transformers 4 or 5 writes it."""
    thetas = [values.rope_theta]
    for key in ("rope_scaling", "rope_parameters"):
        rope, given = getattr(values, key), config.get(key) or {}
        if rope is None:
            continue
        kinds = {rope.rope_type, rope.type}
        if kinds != {"default"} or given.keys() - _Rope.model_fields.keys():
            raise _refused(key, given, "give a model without rope scaling")
        thetas.append(rope.rope_theta)
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise _refused(
            "partial_rotary_factor", config["partial_rotary_factor"], "give a model with 1.0"
        )
    found = {theta for theta in thetas if theta is not None}
    if len(found) > 1:
        named = ", ".join(f"{theta:g}" for theta in sorted(found))
        raise Malformed("rope_theta", f"is given as {named}", "give it once")
    return found.pop() if found else _THETA[config["model_type"]]


_THETA = {"llama": 1e4, "mixtral": 1e6}
"""The base where a file has none."""


def _check_heads_and_window(values: _Llama) -> None:
    head_dim, window = values.head_dim, values.sliding_window
    if head_dim is not None and head_dim * values.num_attention_heads != values.hidden_size:
        raise _refused("head_dim", head_dim, "give a model whose heads make up its width")
    if window is not None and window < values.max_position_embeddings:
        raise _refused("sliding_window", window, "give a model that attends to its whole sequence")


def _refused(key: str, value: Any, fix: str) -> Malformed:
    return Malformed(key, f"= {shown(value)} is not implemented", fix)
