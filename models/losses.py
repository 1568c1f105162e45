"""What training makes small, and what held-out data is measured by.

Shapes: logits [..., V] and targets [...]; in front stand [B, T] for tokens, [B] for images.
"""

import jax
import jax.numpy as jnp

from exajax.spmd.weighted import Loss, weighted_mean


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    vocab: int,
    *,
    weights: jax.Array | None = None,
    z_loss: float = 0.0,
    smoothing: float = 0.0,
) -> Loss:
    """Mean negative log-likelihood in nats, with two regularisers that are off by default.

    What pads the vocabulary has no probability: the logits of published weights are far below the
    zero of an empty row, and it would take all.

    The target's logit is picked by comparison, not by indexing, so that every device works on its
    own part of a sharded vocabulary.

    Args:
        logits: scores before the softmax, [..., V].
        targets: the right class, whole numbers [...].
        vocab: how many of the V are classes; the rest pads.
        weights: how much each target counts, [...]; a target of weight 0 may be no class. None
            counts all the same, and returns a scalar.
        z_loss: weight of the mean squared log of the softmax's normaliser, which keeps logits from
            drifting (PaLM, arXiv:2204.02311, section 5).
        smoothing: share of the target that is spread evenly over all classes (arXiv:1512.00567,
            section 7).
    """
    logits = logits.astype(jnp.float32)
    index_V = jnp.arange(logits.shape[-1])
    known_V = index_V < vocab
    if vocab < logits.shape[-1]:
        logits = jnp.where(known_V, logits, -jnp.inf)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    picked = jnp.sum(jnp.where(targets[..., None] == index_V, logits, 0.0), axis=-1)
    if smoothing:
        spread = jnp.sum(jnp.where(known_V, logits, 0.0), axis=-1) / vocab
        picked = (1 - smoothing) * picked + smoothing * spread
    if weights is not None:
        return weighted_mean(normaliser - picked + z_loss * jnp.square(normaliser), weights)
    loss = jnp.mean(normaliser - picked)
    return loss + z_loss * jnp.mean(jnp.square(normaliser)) if z_loss else loss


def accuracy(logits: jax.Array, targets: jax.Array, vocab: int) -> jax.Array:
    """Share of the targets whose logit is the largest of the first `vocab`, from 0 to 1."""
    known = jnp.where(jnp.arange(logits.shape[-1]) < vocab, logits, -jnp.inf)
    return jnp.mean((jnp.argmax(known, axis=-1) == targets).astype(jnp.float32))
