"""Llama: rotary positions, RMSNorm, SwiGLU, grouped key and value heads (arXiv:2302.13971)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from exajax.models.attention import attention, zigzag
from exajax.models.dimensions import ModelConfig
from exajax.models.layers import (
    PLAIN,
    RESIDUAL,
    Decoder,
    Documents,
    Embedding,
    How,
    Stack,
    Streamed,
    kept_as,
    rms_norm,
    rotary,
    weight,
)
from exajax.models.whole_tokens import gathered, summed
from exajax.spmd.sharding import constrain


class Attention(nnx.Module):
    """Self-attention with rotary positions."""

    def __init__(self, config: ModelConfig, how: How, *, rngs: nnx.Rngs):
        D, N, K, H = config.width, config.heads, config.kv_heads, config.head_dim
        self.theta, self.flash = config.rope_theta, how.flash
        self.again, self.whole = how.remat == "attention", how.whole_tokens
        matrix = functools.partial(weight, in_fp8=how.fp8, rngs=rngs)
        self.query = matrix(D, (N, H), ("embed", "heads", "head"))
        self.key = matrix(D, (K, H), ("embed", "kv_heads", "head"))
        self.value = matrix(D, (K, H), ("embed", "kv_heads", "head"))
        scale = 0.02 / (2 * config.layers) ** 0.5
        self.out = matrix((N, H), D, ("heads", "head", "embed"), scale=scale)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> jax.Array:
        heads, kv_heads = ("batch", "tokens", "heads", None), ("batch", "tokens", "kv_heads", None)
        places_BT = None if documents is None else documents.position_BT
        x_BTD = gathered(x_BTD, self.whole)
        q_BTNH, k_BTKH = constrain(self.query(x_BTD), heads), constrain(self.key(x_BTD), kv_heads)
        q_BTNH = kept_as("query", rotary(q_BTNH, self.theta, places_BT))
        k_BTKH = kept_as("key", rotary(k_BTKH, self.theta, places_BT))
        v_BTKH = kept_as("value", constrain(self.value(x_BTD), kv_heads))
        mixed_BTNH = attention(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            flash=self.flash,
            again=self.again,
            segments_BT=None if documents is None else documents.number_BT,
        )
        return kept_as("mixed", summed(self.out(constrain(mixed_BTNH, heads)), self.whole))


class SwiGLU(nnx.Module):
    """Gated feed-forward: down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, how: How, *, rngs: nnx.Rngs):
        D, F = config.width, config.ffn
        self.whole = how.whole_tokens
        matrix = functools.partial(weight, in_fp8=how.fp8, rngs=rngs)
        self.gate = matrix(D, F, ("embed", "mlp"))
        self.up = matrix(D, F, ("embed", "mlp"))
        self.down = matrix(F, D, ("mlp", "embed"), scale=0.02 / (2 * config.layers) ** 0.5)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = gathered(x_BTD, self.whole)
        gate_BTF, up_BTF = (kept_as("up", matrix(x_BTD)) for matrix in (self.gate, self.up))
        h_BTF = nnx.silu(gate_BTF) * up_BTF
        fed_BTD = self.down(constrain(h_BTF, ("batch", "tokens", "mlp")))
        return kept_as("down", summed(fed_BTD, self.whole))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, how: How, *, rngs: nnx.Rngs):
        self.attention_norm = rms_norm(config.width, rngs=rngs)
        self.attention = Attention(config, how, rngs=rngs)
        self.mlp_norm = rms_norm(config.width, rngs=rngs)
        self.mlp = SwiGLU(config, how, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> Streamed:
        with jax.named_scope("attention_block"):
            mixed_BTD = self.attention(self.attention_norm(x_BTD), documents)
            x_BTD = constrain(x_BTD + mixed_BTD, RESIDUAL)
        with jax.named_scope("mlp"):
            return x_BTD + self.mlp(self.mlp_norm(x_BTD)), jnp.zeros(())


class Llama(Decoder):
    """A Llama of the given dimensions.

    Args:
        config: dimensions.
        how: how it is computed.
        rngs: random streams; parameters are drawn from its default stream.
    """

    def __init__(self, config: ModelConfig, how: How = PLAIN, *, rngs: nnx.Rngs):
        D, V = config.width, config.padded_vocab
        self.remat, self.whole = how.remat, how.whole_tokens
        self.embed = Embedding(V, D, rngs=rngs)
        self.stack = self.layers(config, how, rngs)
        self.norm = rms_norm(D, rngs=rngs)
        self.logits = weight(D, V, ("embed", "vocab"), rngs=rngs)

    @staticmethod
    def layers(config: ModelConfig, how: How, rngs: nnx.Rngs) -> Stack:
        """Returns the blocks, stacked."""
        return Stack(
            lambda r: Block(config, how, rngs=r), config.layers, parts=how.interleave, rngs=rngs
        )

    def enter(self, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        with jax.named_scope("embed"):
            return constrain(self.embed(zigzag(tokens_BT)), RESIDUAL)

    def head(self, x_BTD: jax.Array) -> jax.Array:
        with jax.named_scope("logits"):
            x_BTD = gathered(self.norm(x_BTD), self.whole)
            return constrain(self.logits(x_BTD), ("batch", "tokens", "vocab"))
