"""FLOPs of matrix products that devices perform in a step of exajax's program, for its HFU."""

from exajax.recipe.recipe import Recipe
from exajax.simulate.formulas.xla.passes import recomputed_parts


def hardware_flops(recipe: Recipe, *, flash: bool) -> float:
    """FLOPs of a step as the compiled program has them, on all devices together.

    A device counts like the busiest one (`exajax.models.presets.FLOPS_CONVENTION` says what counts
    besides the model's own). Tests compare it with compiled programs of every family and mesh axis.

    Args:
        recipe: what is trained.
        flash: whether attention is the fused kernel.
    """
    model, tokens = recipe.model, recipe.tokens
    again = recomputed_parts(recipe.remat, recipe.mesh.model > 1)
    forward = _forward_flops(recipe)
    blocks = sum(tokens * flops * (3 + (part in again)) for part, flops in forward.items())
    score = 2.0 * tokens * recipe.seq * model.width * model.layers
    blocks += score * _score_products(recipe, flash=flash, recomputed="attention" in again)
    if not model.is_text:  # logits once an image; pixels have no gradient
        ends = 6.0 * recipe.global_batch * model.width * model.padded_vocab
        ends += 4.0 * tokens * model.width * model.patch_size
    else:
        ends = 6.0 * tokens * model.width * model.padded_vocab
    stages, micro_batches = recipe.mesh.pipe, recipe.micro_batches
    if stages == 1:
        return blocks + ends
    # Bubbles compute what is thrown away, and every slot of the busiest stage, the last, may end
    # in the logits.
    items = micro_batches * recipe.interleave
    slots = items + stages - 1
    return blocks * slots / items + ends * stages * slots / micro_batches


def _forward_flops(recipe: Recipe) -> dict[str, float]:
    """FLOPs of the forward pass of one token through all blocks, by part."""
    model = recipe.model
    D, F, mixtures = model.width, model.ffn, model.mixture_layers
    heads, kv = model.heads * model.head_dim, 2 * model.kv_heads * model.head_dim
    dense = model.layers - mixtures
    # Every device of `model` routes the whole sequence where it does not divide it.
    routers = 1 if recipe.sequence_parallel else recipe.mesh.model
    routed = model.top_k * 3 * D * F * recipe.expert_room
    return {
        "qkv": 2.0 * model.layers * D * (heads + kv),
        "out": 2.0 * model.layers * D * heads,
        "up": 2.0 * dense * model.up_matrices * D * F,
        "down": 2.0 * dense * D * F,
        "experts": 2.0 * mixtures * (routed + routers * D * model.experts),
    }


def _score_products(recipe: Recipe, *, flash: bool, recomputed: bool) -> float:
    """Products of [T, T] scores with heads, as multiples of one for a whole sequence.

    Forward 2 and backward 4, or 5 where the kernel recomputes the scores; the forward
    ones once more where they are recomputed. A causal mask spares the fused kernel half.
    """
    again, ways, causal = 2 * recomputed, recipe.mesh.context, recipe.model.causal
    if flash:
        return (2 + 5 + again) * (0.5 if causal else 1)
    if ways == 1 or not causal:  # without a mask every device sees the whole sequence
        return (2 + 4 + again) * ways
    # Of 2C x 2C pairs of chunks a device has 4C, and works on 3 of its own and 2 of each other
    # device's. The scores of its own are made once for recomputation and gradients alike: the
    # compiler sees that they are the same; of two devices, those of the other one too.
    same = 3 + (2 if ways == 2 else 0)
    return ((2 + 5 + again) * (2 * ways + 1) - same) / (4 * ways)
