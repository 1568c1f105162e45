"""The recipe of a published row."""

from exajax.machine import software as profiles
from exajax.machine import software_of_rows
from exajax.machine.published_columns import (
    Columns,
    InexpressibleError,
    positive_integer,
    positive_number,
)
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec
from exajax.validate import row_models

REMAT_OF_POLICY = {
    "none": "none",
    "selective": "attention",
    "save_dots": "selective",
    "save_dots_except_mlp_wi": "save-dots-except-mlp-wi",
    "save_dots_except_mlp": "save-dots-except-mlp",
    "save_qkv": "save-qkv",
    "full": "full",
    "offload": "offload",
}
"""Option `remat` for each recompute policy of the tables."""

REMAT_OF_SOURCE = {
    # SAVE_QKV_OUT_PROJ in paxml/paxml_mod_configs.py of NVIDIA/dgxc-benchmarking.
    ("PaxML (JAX) GPT 175B", "gpt3-175b"): "save_dots_except_mlp",
    # GPT175BBase in paxml/contrib/gpu/scripts_gpu/configs.py of google/paxml leaves it at
    # SAVE_NOTHING of tasks/lm/model_params.py.
    ("Rosetta Pax", "gpt3-175b"): "full",
}
"""What is recomputed where a row does not say, and the source's own files do: by a part of the
source's name, and the model."""

PRECISION_OF_DTYPE = {"bf16": "bf16", "fp16": "bf16", "fp8": "fp8"}
"""Option `precision` for each type of the tables; fp16 is as fast as bf16 on matrix units."""

FAMILY_OF_MLP = {"swiglu": "llama", "gelu": "gpt"}
"""Model family by its feed-forward."""

MATRICES = {"llama": 3, "gpt": 2}
"""Matrices of a family's feed-forward."""

SAME_SIZE = 0.08
"""How far the parameters of a family may be from those that a row says, for it to be the family."""

LEAST_SIZE = 0.6
"""Share of the parameters that a row says, below which its dimensions leave something out, such as
experts that no column has."""


def recipe_of(values: Columns) -> Recipe:
    """The recipe of a row.

    Args:
        values: the row's columns; an empty one is unknown.

    Raises:
        InexpressibleError: a required value is unknown, or a recipe cannot express it.
        InputError: the options do not fit each other.
    """
    if "lora" in values.get("model", "").lower() or "lora" in values["row_id"].lower():
        raise InexpressibleError("it trains adapters alone")
    remat = remat_of(values)
    if values.get("dtype") not in PRECISION_OF_DTYPE:
        raise InexpressibleError(f"its precision is {values.get('dtype') or 'unknown'}")
    model = model_of(values)
    mesh, zero = layout_of(values)
    if mesh.expert > 1 and not model.experts:
        raise InexpressibleError(f"it has ep {mesh.expert}, and its experts are unknown")
    interleave = positive_integer(values, "vpp_interleave", 1)
    return Recipe.of(
        model,
        mesh,
        analytic_only=True,
        global_batch=positive_integer(values, "global_batch"),
        micro_batch=positive_integer(values, "micro_batch"),
        seq=model.seq,
        precision=PRECISION_OF_DTYPE[values["dtype"]],
        remat=remat,
        zero=zero,
        attention="unfused" if values.get("attention") == "unfused" else "auto",
        schedule="interleaved" if interleave > 1 else "1f1b",
        interleave=interleave,
        sequence_parallel=values.get("sequence_parallel") != "no",
    )


def remat_of(values: Columns) -> str:
    """What a row recomputes: as it says, or its source's files do, or its profile assumes.

    Raises:
        InexpressibleError: it is unknown, or unknown to a recipe.
    """
    policy = values.get("recompute_policy") or _policy_of_source(values)
    if policy not in REMAT_OF_POLICY:
        raise InexpressibleError(f"its recompute policy is {policy or 'unknown'}")
    return REMAT_OF_POLICY[policy]


def assumed_policy(values: Columns) -> str:
    """The recompute policy that is assumed for a row without one, for people; else empty."""
    policy = "" if values.get("recompute_policy") else _policy_of_source(values)
    return policy and f"recompute_policy = {policy} (as its source's files or software)"


def _policy_of_source(values: Columns) -> str:
    source, model, software = values["source"], values.get("model"), values.get("software")
    of_source = (
        policy
        for (part, called), policy in REMAT_OF_SOURCE.items()
        if part in source and called == model
    )
    # The default profile says nothing of a source that it is only assumed for.
    profile = software_of_rows.profile_of(source, software) if software else None
    return next(of_source, (profile or profiles.of_source(source)).remat)


def model_of(values: Columns) -> ModelConfig:
    """Returns the model of a row: its columns, and where they are empty what its name stands for.

    Raises:
        InexpressibleError: a dimension is unknown, or they make another model than the row says.
    """
    known = row_models.named(values)
    values = row_models.completed(values, known)
    heads = positive_integer(values, "heads")
    model = ModelConfig(
        name=values.get("model", "") or "unnamed",
        family="mixtral" if known and known.experts else family_of(values),
        layers=positive_integer(values, "layers"),
        width=positive_integer(values, "hidden"),
        heads=heads,
        kv_heads=positive_integer(values, "kv_heads", heads),
        ffn=positive_integer(values, "ffn"),
        vocab=positive_integer(values, "vocab"),
        seq=positive_integer(values, "seq"),
        source=values.get("where_found", ""),
        experts=known.experts if known else 0,
        top_k=known.top_k if known else 0,
    )
    if model.width % model.heads or model.heads % model.kv_heads:
        raise InexpressibleError(
            f"its heads {model.heads} do not divide its width {model.width}, or its kv_heads "
            f"{model.kv_heads} not its heads"
        )
    stated = (positive_number(values, "params_B") or 0.0) * 1e9
    if model.parameters < LEAST_SIZE * stated:
        raise InexpressibleError(
            f"its dimensions make {model.parameters / 1e9:.3g} G parameters, and it says "
            f"{stated / 1e9:.3g} G"
        )
    return model


def family_of(values: Columns) -> str:
    """Returns the family of a row's model: by its feed-forward, or by how many parameters it has.

    Raises:
        InexpressibleError: the feed-forward is not said, and no family has so many parameters.
    """
    mlp = values.get("mlp", "")
    if mlp in FAMILY_OF_MLP:
        return FAMILY_OF_MLP[mlp]
    stated = (positive_number(values, "params_B") or 0.0) * 1e9
    width, layers = positive_integer(values, "hidden"), positive_integer(values, "layers")
    heads = positive_integer(values, "heads")
    grouped = positive_integer(values, "kv_heads", heads) / heads
    outside = 2 * width * positive_integer(values, "vocab") + layers * 2 * width**2 * (1 + grouped)
    for family, matrices in MATRICES.items():
        size = outside + layers * matrices * width * positive_integer(values, "ffn")
        if not mlp and abs(size / stated - 1 if stated else 1.0) < SAME_SIZE:
            return family
    raise InexpressibleError(f"its feed-forward is {mlp or 'unknown'}")


def sharded(recipe: Recipe) -> bool:
    """Whether parameters are sharded over the batch axes."""
    return recipe.mesh.fsdp > 1 or (recipe.zero == 3 and recipe.mesh.data > 1)


def layout_of(values: Columns) -> tuple[MeshSpec, int]:
    """Returns the mesh of a row and the ZeRO level of its data axis.

    Where data x fsdp x tensor x pipeline x context are the devices, data replicates and fsdp
    shards; where data alone is what the rest leaves, it shards as `zero` says; data and fsdp of
    the same size, each all the devices, are one axis named twice. Experts are divided within data,
    or over an axis of their own where the devices are that many times more.

    Raises:
        InexpressibleError: the columns do not multiply to the devices.
    """
    devices = positive_integer(values, "num_gpus")
    data, fsdp = positive_integer(values, "dp", 1), positive_integer(values, "fsdp", 1)
    tensor, pipe, context, expert = (
        positive_integer(values, axis, 1) for axis in ("tp", "pp", "cp", "ep")
    )
    if data == fsdp == devices:
        data = 1
    others = fsdp * tensor * pipe * context
    if data * others == devices and data % expert == 0:
        data //= expert
    if data * expert * others != devices:
        raise InexpressibleError(
            f"dp {data} x fsdp {fsdp} x tp {tensor} x pp {pipe} x cp {context} is not its "
            f"{devices} devices" + f", with or without ep {expert}" * (expert > 1)
        )
    mesh = MeshSpec(pipe=pipe, data=data, fsdp=fsdp, expert=expert, context=context, model=tensor)
    zero = values.get("zero", "")
    return mesh, int(zero) if fsdp == 1 and zero in ("0", "1", "2", "3") else 0
