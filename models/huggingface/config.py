"""Conversion between Hugging Face's `config.json` and dimensions, for GPT-2, Llama and Mixtral.

Keys and their defaults are those of transformers' `GPT2Config`, `LlamaConfig` and `MixtralConfig`
(huggingface.co/docs/transformers/model_doc/{gpt2,llama,mixtral}). Every key that changes what the
model computes is converted to a field of `ModelConfig`, or rejected by name if exajax's module
computes something else. These keys are ignored:

- `attn_pdrop`, `embd_pdrop`, `resid_pdrop`: dropout in training, which exajax does not have; most
  GPT-2 files have the default of 0.1, whatever they were trained with.
- `output_router_logits`: what a forward pass returns. Whether training balances the experts depends
  on `router_aux_loss_coef` alone.
- `initializer_range`: the spread of new weights, for which exajax has its own.
- `torch_dtype`, `dtype`: weights are read in the type that they are stored in.
- `pretraining_tp`, `reorder_and_upcast_attn`, `use_cache`: the same sums in another order.
- token ids, `summary_*`, and keys without a meaning for the file's `architectures`.

Does not import JAX.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exajax.errors import InputError, nearest
from exajax.files.reading import Malformed, read_json, shown
from exajax.files.schema import Items, Record, checked
from exajax.models.dimensions import ModelConfig
from exajax.models.model_file import Heads, Layers, Theta, Tokens, Weight, Width, valid_name


class _RopeKeys(Record):
    """`rope_parameters` or `rope_scaling`; scaling of rotary positions is not implemented."""

    rope_type: str = "default"
    type: str = "default"
    rope_theta: Theta | None = None


class _ConfigKeys(Record):
    architectures: Items[str] | None = None


class _Gpt2Keys(_ConfigKeys):
    n_layer: Layers
    n_embd: Width
    n_head: Heads
    n_inner: Width | None = None
    vocab_size: Tokens
    n_positions: Tokens


class _LlamaKeys(_ConfigKeys):
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
    rope_parameters: _RopeKeys | None = None
    rope_scaling: _RopeKeys | None = None


class _MixtralKeys(_LlamaKeys):
    num_local_experts: Heads
    num_experts_per_tok: Heads
    router_aux_loss_coef: Weight = 0.001


@dataclass(frozen=True)
class Family:
    """The notation of one family in `config.json`.

    Attributes:
        model_type: the file's `model_type`.
        architecture: class of transformers with exactly these weights.
        schema: types and ranges of the keys that are converted.
        fields: key of each field of `ModelConfig`.
        fixed: keys with only one implemented value, as key: (that value, the key's default).
    """

    model_type: str
    architecture: str
    schema: type[_ConfigKeys]
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
        _Gpt2Keys,
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
        _LlamaKeys,
        _ROTARY_FIELDS,
        {"rms_norm_eps": (1e-5, 1e-6)} | _ROTARY_FIXED,
    ),
    "mixtral": Family(
        "mixtral",
        "MixtralForCausalLM",
        _MixtralKeys,
        _ROTARY_FIELDS | {"experts": "num_local_experts", "top_k": "num_experts_per_tok"},
        {"rms_norm_eps": (1e-5, 1e-5), "router_jitter_noise": (0.0, 0.0)} | _ROTARY_FIXED,
    ),
}

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Transformers' name of each type that weights can be written in."""

CONFIG = "config.json"


def read_config(folder: Path) -> dict[str, Any]:
    """Fields of `ModelConfig` that a folder's `config.json` gives.

    Args:
        folder: a Hugging Face folder.

    Raises:
        Malformed: there is no such file, or it describes something that exajax does not implement;
            the error names the key.
    """
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict) or "model_type" not in config:
        raise Malformed("model_type", "is missing", "give the config.json of a model")
    theirs = config["model_type"]
    families = {family.model_type: name for name, family in FAMILIES.items()}
    if not isinstance(theirs, str) or theirs not in families:
        raise _not_implemented("model_type", theirs, nearest(str(theirs)[:99], families))
    name = families[theirs]
    family = FAMILIES[name]
    values = checked(family.schema, config)
    if family.architecture not in (values.architectures or [family.architecture]):
        raise _not_implemented(
            "architectures", config["architectures"], f"give a {family.architecture}"
        )
    _check_computable(config, family)
    table = {ours: getattr(values, key) for ours, key in family.fields.items()}
    if isinstance(values, _Gpt2Keys):
        table["ffn"] = values.n_inner or 4 * values.n_embd
    if isinstance(values, _LlamaKeys):
        table["kv_heads"] = values.num_key_value_heads or values.num_attention_heads
        table["rope_theta"] = _rope_theta(config, values)
        _check_heads_and_window(values)
    if isinstance(values, _MixtralKeys):
        table["balance"] = to_balance(values.router_aux_loss_coef, table["top_k"], table["layers"])
    return table | {"name": valid_name(folder.resolve().name), "family": name, "source": CONFIG}


def write_config(config: ModelConfig, dtype: str, end: int | None = None) -> dict[str, Any]:
    """The `config.json` of a model.

    Args:
        config: dimensions of the model.
        dtype: type of its weights, a key of `DTYPES`.
        end: id of the token that ends a document, None if unknown. No token starts one.

    Raises:
        InputError: transformers has no such architecture.
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
        # The defaults are ids of the published tokenizers, not of this one.
        "bos_token_id": None,
        "eos_token_id": end,
    }
    if config.family == "gpt":
        return table | {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    if config.family == "mixtral":
        coefficient = to_coefficient(config.balance, config.top_k, config.layers)
        table |= {"router_aux_loss_coef": coefficient, "output_router_logits": coefficient > 0}
    return table | {"rope_theta": config.rope_theta}


def to_balance(coefficient: float, top_k: int, layers: int) -> float:
    """The `balance` of a `router_aux_loss_coef`, by which balanced experts have the same loss.

    transformers' `load_balancing_loss_func` sums the shares of each of a token's `top_k` choices
    and takes means over all layers together, so that it is `top_k` for balanced experts. The loss
    of `exajax.models.experts.imbalance` is 1 in each layer, summed over layers.
    """
    return float(f"{coefficient * top_k / layers:.12g}")


def to_coefficient(balance: float, top_k: int, layers: int) -> float:
    """The `router_aux_loss_coef` of a `balance`: the inverse of `to_balance`."""
    return float(f"{balance * layers / top_k:.12g}")


def _check_computable(config: dict[str, Any], family: Family) -> None:
    for key in ("quantization_config", "compression_config"):
        if config.get(key) is not None:
            raise _not_implemented(key, config[key], "give the weights as they were trained")
    if config.get("pruned_heads"):
        raise _not_implemented(
            "pruned_heads", config["pruned_heads"], "give a model with all its heads"
        )
    for key, (value, absent) in family.fixed.items():
        if config.get(key, absent) != value:
            raise _not_implemented(
                key, config.get(key, absent), f"give a model with {key} {value!r}"
            )


def _rope_theta(config: dict[str, Any], values: _LlamaKeys) -> float:
    """The base of the rotary frequencies, in the notation of transformers 4 or 5."""
    thetas = [values.rope_theta]
    for key in ("rope_scaling", "rope_parameters"):
        rope, given = getattr(values, key), config.get(key) or {}
        if rope is None:
            continue
        kinds = {rope.rope_type, rope.type}
        if kinds != {"default"} or given.keys() - _RopeKeys.model_fields.keys():
            raise _not_implemented(key, given, "give a model without rope scaling")
        thetas.append(rope.rope_theta)
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        raise _not_implemented(
            "partial_rotary_factor", config["partial_rotary_factor"], "give a model with 1.0"
        )
    found = {theta for theta in thetas if theta is not None}
    if len(found) > 1:
        named = ", ".join(f"{theta:g}" for theta in sorted(found))
        raise Malformed("rope_theta", f"is given as {named}", "give it once")
    return found.pop() if found else _THETA[config["model_type"]]


_THETA = {"llama": 1e4, "mixtral": 1e6}
"""Default base of the rotary frequencies, by `model_type`."""


def _check_heads_and_window(values: _LlamaKeys) -> None:
    head_dim, window = values.head_dim, values.sliding_window
    if head_dim is not None and head_dim * values.num_attention_heads != values.hidden_size:
        raise _not_implemented("head_dim", head_dim, "give a model whose heads make up its width")
    if window is not None and window < values.max_position_embeddings:
        raise _not_implemented(
            "sliding_window", window, "give a model that attends to its whole sequence"
        )


def _not_implemented(key: str, value: Any, fix: str) -> Malformed:
    return Malformed(key, f"= {shown(value)} is not implemented", fix)
