"""Mixtral: a Llama whose feed-forward is a mixture of experts (arXiv:2401.04088).

Shapes as in `layers`; and E experts, k experts of a token.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from exajax.models.dimensions import ModelConfig
from exajax.models.experts import dropless, imbalance, with_capacity
from exajax.models.layers import RESIDUAL, Documents, How, Stack, Streamed, rms_norm, weight
from exajax.models.llama import Attention, Llama
from exajax.models.llama import Block as Dense
from exajax.spmd.sharding import constrain


class Experts(nnx.Module):
    """E gated feed-forwards, of which every token takes the k that its router scores highest."""

    def __init__(self, config: ModelConfig, how: How, *, rngs: nnx.Rngs):
        D, F, E = config.width, config.ffn, config.experts
        self.top_k, self.moe, self.capacity_factor = config.top_k, how.moe, how.capacity_factor
        self.balance = config.balance
        self.router = weight(D, E, ("embed", None), rngs=rngs)
        self.gate, self.up = (_experts((E, D, F), ("experts", "embed", "mlp"), rngs) for _ in "gu")
        scale = 0.02 / (2 * config.layers) ** 0.5
        self.down = _experts((E, F, D), ("experts", "mlp", "embed"), rngs, scale)

    def __call__(self, x_BTD: jax.Array) -> Streamed:
        scores_BTE = jax.nn.softmax(self.router(x_BTD).astype(jnp.float32), axis=-1)
        gates_BTk, experts_BTk = jax.lax.top_k(scores_BTE, self.top_k)
        gates_BTk /= jnp.sum(gates_BTk, axis=-1, keepdims=True)
        matrices = self.gate[...], self.up[...], self.down[...]
        if self.moe == "dropless":
            y_BTD = dropless(x_BTD, experts_BTk, gates_BTk, *matrices)
        else:
            T, E = x_BTD.shape[1], self.gate.shape[0]
            room = min(T, math.ceil(self.capacity_factor * T * self.top_k / E))
            y_BTD = with_capacity(x_BTD, experts_BTk, gates_BTk, *matrices, room)
        return y_BTD, self.balance * imbalance(scores_BTE, experts_BTk)


def _experts(
    shape: tuple[int, int, int], names: tuple[str, str, str], rngs: nnx.Rngs, scale: float = 0.02
) -> nnx.Param:
    return nnx.Param(nnx.initializers.normal(scale)(rngs.params(), shape), out_sharding=names)


class Block(nnx.Module):
    """Pre-norm attention and mixture, each added to the residual stream."""

    def __init__(self, config: ModelConfig, how: How, *, rngs: nnx.Rngs):
        self.attention_norm = rms_norm(config.width, rngs=rngs)
        self.attention = Attention(config, how, rngs=rngs)
        self.mlp_norm = rms_norm(config.width, rngs=rngs)
        self.moe = Experts(config, how, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> Streamed:
        with jax.named_scope("attention_block"):
            mixed_BTD = self.attention(self.attention_norm(x_BTD), documents)
            x_BTD = constrain(x_BTD + mixed_BTD, RESIDUAL)
        with jax.named_scope("moe"):
            fed_BTD, loss = self.moe(self.mlp_norm(x_BTD))
            return x_BTD + fed_BTD, loss


class Group(nnx.Module):
    """Dense blocks and, last, one with a mixture."""

    def __init__(self, config: ModelConfig, how: How, *, rngs: nnx.Rngs):
        self.dense = Stack(
            lambda r: Dense(config, how, rngs=r), config.moe_every - 1, name="within", rngs=rngs
        )
        self.mixture = Block(config, how, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> Streamed:
        x_BTD, _ = self.dense(x_BTD, documents)
        return self.mixture(x_BTD, documents)


class Mixtral(Llama):
    """A Mixtral of the given dimensions; one layer of `moe_every` is a mixture, the last."""

    @staticmethod
    def layers(config: ModelConfig, how: How, rngs: nnx.Rngs) -> Stack:
        """Returns the blocks, or the groups of them that end in a mixture, stacked."""
        block = Block if config.moe_every == 1 else Group
        return Stack(
            lambda r: block(config, how, rngs=r),
            config.layers // config.moe_every,
            parts=how.interleave,
            rngs=rngs,
        )
