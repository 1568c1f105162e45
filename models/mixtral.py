"""Mixtral: a Llama whose feed-forward is a mixture of experts (arXiv:2401.04088).

Shapes as in `layers`, and: E experts, k experts that a token is routed to.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from exajax.models.dimensions import ModelConfig
from exajax.models.experts import ExpertWeights, Routing, dropless, imbalance, with_capacity
from exajax.models.layers import (
    RESIDUAL,
    ComputeOptions,
    Documents,
    LayerStack,
    StreamAndLoss,
    linear,
    rms_norm,
)
from exajax.models.llama import Llama, LlamaAttention, LlamaBlock
from exajax.spmd.sharding import constrain


class Experts(nnx.Module):
    """Mixture of E SwiGLU feed-forwards: each token goes to the k with the highest scores."""

    def __init__(self, config: ModelConfig, how: ComputeOptions, *, rngs: nnx.Rngs):
        D, F, E = config.width, config.ffn, config.experts
        self.top_k, self.moe, self.capacity_factor = config.top_k, how.moe, how.capacity_factor
        self.balance = config.balance
        self.router = linear(D, E, ("embed", None), rngs=rngs)
        self.gate, self.up = (
            _expert_weights((E, D, F), ("experts", "embed", "mlp"), rngs) for _ in "gu"
        )
        scale = 0.02 / (2 * config.layers) ** 0.5
        self.down = _expert_weights((E, F, D), ("experts", "mlp", "embed"), rngs, scale)

    def __call__(self, x_BTD: jax.Array) -> StreamAndLoss:
        scores_BTE = jax.nn.softmax(self.router(x_BTD).astype(jnp.float32), axis=-1)
        gates_BTk, experts_BTk = jax.lax.top_k(scores_BTE, self.top_k)
        gates_BTk /= jnp.sum(gates_BTk, axis=-1, keepdims=True)
        routing = Routing(experts_BTk, gates_BTk)
        weights = ExpertWeights(self.gate[...], self.up[...], self.down[...])
        if self.moe == "dropless":
            y_BTD = dropless(x_BTD, routing, weights)
        else:
            T, E = x_BTD.shape[1], self.gate.shape[0]
            capacity = min(T, math.ceil(self.capacity_factor * T * self.top_k / E))
            y_BTD = with_capacity(x_BTD, routing, weights, capacity)
        return y_BTD, self.balance * imbalance(scores_BTE, experts_BTk)


def _expert_weights(
    shape: tuple[int, int, int], names: tuple[str, str, str], rngs: nnx.Rngs, scale: float = 0.02
) -> nnx.Param:
    return nnx.Param(nnx.initializers.normal(scale)(rngs.params(), shape), out_sharding=names)


class MixtralBlock(nnx.Module):
    """Pre-norm attention and mixture of experts, each added to the residual stream."""

    def __init__(self, config: ModelConfig, how: ComputeOptions, *, rngs: nnx.Rngs):
        self.attention_norm = rms_norm(config.width, rngs=rngs)
        self.attention = LlamaAttention(config, how, rngs=rngs)
        self.mlp_norm = rms_norm(config.width, rngs=rngs)
        self.moe = Experts(config, how, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> StreamAndLoss:
        with jax.named_scope("attention_block"):
            mixed_BTD = self.attention(self.attention_norm(x_BTD), documents)
            x_BTD = constrain(x_BTD + mixed_BTD, RESIDUAL)
        with jax.named_scope("moe"):
            fed_BTD, loss = self.moe(self.mlp_norm(x_BTD))
            return x_BTD + fed_BTD, loss


class MixtralGroup(nnx.Module):
    """`moe_every` - 1 dense blocks, then one with a mixture of experts."""

    def __init__(self, config: ModelConfig, how: ComputeOptions, *, rngs: nnx.Rngs):
        self.dense = LayerStack(
            lambda r: LlamaBlock(config, how, rngs=r),
            config.moe_every - 1,
            name="within",
            rngs=rngs,
        )
        self.mixture = MixtralBlock(config, how, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> StreamAndLoss:
        x_BTD, _ = self.dense(x_BTD, documents)
        return self.mixture(x_BTD, documents)


class Mixtral(Llama):
    """Mixtral: tokens [B, T] to logits [B, T, V]; every `moe_every`-th layer is a mixture."""

    @staticmethod
    def layers(config: ModelConfig, how: ComputeOptions, rngs: nnx.Rngs) -> LayerStack:
        """The stack of blocks, or of groups of blocks that end in a mixture."""
        block = MixtralBlock if config.moe_every == 1 else MixtralGroup
        return LayerStack(
            lambda r: block(config, how, rngs=r),
            config.layers // config.moe_every,
            parts=how.interleave,
            rngs=rngs,
        )
