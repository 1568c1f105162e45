"""Llama: rotary positions, RMSNorm, SwiGLU, grouped key and value heads (arXiv:2302.13971)."""

import jax
from flax import nnx

from exajax.models.layers import RESIDUAL, Embedding, Stack, attention, rotary, weight
from exajax.models.presets import ModelConfig
from exajax.sharding import constrain


class Attention(nnx.Module):
    """Self-attention with rotary positions."""

    def __init__(self, config: ModelConfig, flash: bool, *, rngs: nnx.Rngs):
        D, N, K, H = config.width, config.heads, config.kv_heads, config.head_dim
        self.theta, self.flash = config.rope_theta, flash
        self.query = weight(D, (N, H), ("embed", "heads", "head"), rngs=rngs)
        self.key = weight(D, (K, H), ("embed", "kv_heads", "head"), rngs=rngs)
        self.value = weight(D, (K, H), ("embed", "kv_heads", "head"), rngs=rngs)
        self.out = weight(
            (N, H),
            D,
            ("heads", "head", "embed"),
            scale=0.02 / (2 * config.layers) ** 0.5,
            rngs=rngs,
        )

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        q_BTNH = rotary(constrain(self.query(x_BTD), ("batch", None, "heads", None)), self.theta)
        k_BTKH = rotary(constrain(self.key(x_BTD), ("batch", None, "kv_heads", None)), self.theta)
        v_BTKH = constrain(self.value(x_BTD), ("batch", None, "kv_heads", None))
        mixed_BTNH = attention(q_BTNH, k_BTKH, v_BTKH, self.flash)
        return self.out(constrain(mixed_BTNH, ("batch", None, "heads", None)))


class SwiGLU(nnx.Module):
    """Gated feed-forward: down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
        D, F = config.width, config.ffn
        self.gate = weight(D, F, ("embed", "mlp"), rngs=rngs)
        self.up = weight(D, F, ("embed", "mlp"), rngs=rngs)
        self.down = weight(
            F, D, ("mlp", "embed"), scale=0.02 / (2 * config.layers) ** 0.5, rngs=rngs
        )

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        h_BTF = nnx.silu(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(constrain(h_BTF, ("batch", None, "mlp")))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, flash: bool, *, rngs: nnx.Rngs):
        self.attention_norm = nnx.RMSNorm(config.width, epsilon=1e-5, rngs=rngs)
        self.attention = Attention(config, flash, rngs=rngs)
        self.mlp_norm = nnx.RMSNorm(config.width, epsilon=1e-5, rngs=rngs)
        self.mlp = SwiGLU(config, rngs=rngs)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        with jax.named_scope("attention_block"):
            x_BTD = constrain(x_BTD + self.attention(self.attention_norm(x_BTD)), RESIDUAL)
        with jax.named_scope("mlp"):
            return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Llama(nnx.Module):
    """A Llama of the given dimensions.

    Args:
        config: dimensions.
        flash: use the fused attention kernel.
        remat: what blocks keep for the backward pass, a key of `REMAT_POLICIES`.
        rngs: random streams; parameters are drawn from its default stream.
    """

    def __init__(self, config: ModelConfig, *, flash: bool, remat: str, rngs: nnx.Rngs):
        D, V = config.width, config.padded_vocab
        self.remat = remat
        self.embed = Embedding(V, D, rngs=rngs)
        self.stack = Stack(lambda r: Block(config, flash, rngs=r), config.layers, rngs=rngs)
        self.norm = nnx.RMSNorm(D, epsilon=1e-5, rngs=rngs)
        self.logits = weight(D, V, ("embed", "vocab"), rngs=rngs)

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """Returns logits [B, T, V] for the token after each of `tokens_BT`."""
        with jax.named_scope("embed"):
            x_BTD = constrain(self.embed(tokens_BT), RESIDUAL)
        x_BTD = self.stack(x_BTD, self.remat)
        with jax.named_scope("logits"):
            return constrain(self.logits(self.norm(x_BTD)), ("batch", None, "vocab"))
