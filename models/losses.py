"""Training loss and evaluation metrics: cross-entropy and accuracy.

Shapes: logits [..., V] and targets [...], where ... is [B, T] for tokens and [B] for images.
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

    Padding of the vocabulary gets no probability: its logits are 0, far above those of published
    weights, so that it would otherwise get all of it.

    The target's logit is selected by comparison, not by indexing, so that every device computes on
    its own shard of the vocabulary.

    Args:
        logits: scores before the softmax, [..., V].
        targets: index of the right class, [...].
        vocab: number of classes; the rest of V is padding.
        weights: weight of each target, [...]; a target of weight 0 may be out of range. None for
            equal weights, which returns a scalar.
        z_loss: weight of the mean squared log of the softmax's normaliser, which keeps logits from
            drifting (PaLM, arXiv:2204.02311, section 5).
        smoothing: probability that is spread evenly over all classes (arXiv:1512.00567, section 7).
    """
    logits = logits.astype(jnp.float32)
    index_V = jnp.arange(logits.shape[-1])
    is_class_V = index_V < vocab
    if vocab < logits.shape[-1]:
        logits = jnp.where(is_class_V, logits, -jnp.inf)
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    target_logit = jnp.sum(jnp.where(targets[..., None] == index_V, logits, 0.0), axis=-1)
    if smoothing:
        spread = jnp.sum(jnp.where(is_class_V, logits, 0.0), axis=-1) / vocab
        target_logit = (1 - smoothing) * target_logit + smoothing * spread
    if weights is not None:
        return weighted_mean(normaliser - target_logit + z_loss * jnp.square(normaliser), weights)
    loss = jnp.mean(normaliser - target_logit)
    return loss + z_loss * jnp.mean(jnp.square(normaliser)) if z_loss else loss


def accuracy(logits: jax.Array, targets: jax.Array, vocab: int) -> jax.Array:
    """Share of targets, 0 to 1, whose logit is the largest of the first `vocab`."""
    known = jnp.where(jnp.arange(logits.shape[-1]) < vocab, logits, -jnp.inf)
    return jnp.mean((jnp.argmax(known, axis=-1) == targets).astype(jnp.float32))
