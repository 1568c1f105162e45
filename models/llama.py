"""Llama: rotary positions, RMSNorm, SwiGLU, grouped key and value heads (arXiv:2302.13971)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from exajax.models.attention import attention, zigzag
from exajax.models.dimensions import ModelConfig
from exajax.models.layers import (
    REFERENCE,
    RESIDUAL,
    ComputeOptions,
    Decoder,
    Documents,
    Embedding,
    LayerStack,
    StreamAndLoss,
    linear,
    name_for_remat,
    rms_norm,
    rotary,
)
from exajax.models.whole_tokens import whole_input, whole_output
from exajax.spmd.sharding import constrain


class LlamaAttention(nnx.Module):
    """Self-attention with rotary positions."""

    def __init__(self, config: ModelConfig, how: ComputeOptions, *, rngs: nnx.Rngs):
        D, N, K, H = config.width, config.heads, config.kv_heads, config.head_dim
        self.theta, self.flash = config.rope_theta, how.flash
        self.recompute_scores, self.whole_tokens = how.remat == "attention", how.whole_tokens
        dense = functools.partial(linear, in_fp8=how.fp8, rngs=rngs)
        self.query = dense(D, (N, H), ("embed", "heads", "head"))
        self.key = dense(D, (K, H), ("embed", "kv_heads", "head"))
        self.value = dense(D, (K, H), ("embed", "kv_heads", "head"))
        scale = 0.02 / (2 * config.layers) ** 0.5
        self.out = dense((N, H), D, ("heads", "head", "embed"), scale=scale)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> jax.Array:
        heads, kv_heads = ("batch", "tokens", "heads", None), ("batch", "tokens", "kv_heads", None)
        positions_BT = None if documents is None else documents.position_BT
        x_BTD = whole_input(x_BTD, self.whole_tokens)
        q_BTNH, k_BTKH = constrain(self.query(x_BTD), heads), constrain(self.key(x_BTD), kv_heads)
        q_BTNH = name_for_remat("query", rotary(q_BTNH, self.theta, positions_BT))
        k_BTKH = name_for_remat("key", rotary(k_BTKH, self.theta, positions_BT))
        v_BTKH = name_for_remat("value", constrain(self.value(x_BTD), kv_heads))
        mixed_BTNH = attention(
            q_BTNH,
            k_BTKH,
            v_BTKH,
            flash=self.flash,
            recompute_scores=self.recompute_scores,
            segments_BT=None if documents is None else documents.segment_BT,
        )
        return name_for_remat(
            "mixed", whole_output(self.out(constrain(mixed_BTNH, heads)), self.whole_tokens)
        )


class SwiGLU(nnx.Module):
    """Gated feed-forward: down(silu(gate(x)) * up(x)) (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, how: ComputeOptions, *, rngs: nnx.Rngs):
        D, F = config.width, config.ffn
        self.whole_tokens = how.whole_tokens
        dense = functools.partial(linear, in_fp8=how.fp8, rngs=rngs)
        self.gate = dense(D, F, ("embed", "mlp"))
        self.up = dense(D, F, ("embed", "mlp"))
        self.down = dense(F, D, ("mlp", "embed"), scale=0.02 / (2 * config.layers) ** 0.5)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        x_BTD = whole_input(x_BTD, self.whole_tokens)
        gate_BTF, up_BTF = (
            name_for_remat("up", project(x_BTD)) for project in (self.gate, self.up)
        )
        h_BTF = nnx.silu(gate_BTF) * up_BTF
        fed_BTD = self.down(constrain(h_BTF, ("batch", "tokens", "mlp")))
        return name_for_remat("down", whole_output(fed_BTD, self.whole_tokens))


class LlamaBlock(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, how: ComputeOptions, *, rngs: nnx.Rngs):
        self.attention_norm = rms_norm(config.width, rngs=rngs)
        self.attention = LlamaAttention(config, how, rngs=rngs)
        self.mlp_norm = rms_norm(config.width, rngs=rngs)
        self.mlp = SwiGLU(config, how, rngs=rngs)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> StreamAndLoss:
        with jax.named_scope("attention_block"):
            mixed_BTD = self.attention(self.attention_norm(x_BTD), documents)
            x_BTD = constrain(x_BTD + mixed_BTD, RESIDUAL)
        with jax.named_scope("mlp"):
            return x_BTD + self.mlp(self.mlp_norm(x_BTD)), jnp.zeros(())


class Llama(Decoder):
    """Llama: tokens [B, T] to logits [B, T, V].

    Args:
        config: dimensions.
        how: how the model is computed.
        rngs: random streams; initial parameters are drawn from the default stream.
    """

    def __init__(self, config: ModelConfig, how: ComputeOptions = REFERENCE, *, rngs: nnx.Rngs):
        D, V = config.width, config.padded_vocab
        self.remat, self.whole_tokens = how.remat, how.whole_tokens
        self.embed = Embedding(V, D, rngs=rngs)
        self.stack = self.layers(config, how, rngs)
        self.norm = rms_norm(D, rngs=rngs)
        self.logits = linear(D, V, ("embed", "vocab"), rngs=rngs)

    @staticmethod
    def layers(config: ModelConfig, how: ComputeOptions, rngs: nnx.Rngs) -> LayerStack:
        """The stack of blocks; a subclass may have other ones."""
        return LayerStack(
            lambda r: LlamaBlock(config, how, rngs=r),
            config.layers,
            parts=how.interleave,
            rngs=rngs,
        )

    def enter(self, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        with jax.named_scope("embed"):
            return constrain(self.embed(zigzag(tokens_BT)), RESIDUAL)

    def head(self, x_BTD: jax.Array) -> jax.Array:
        with jax.named_scope("logits"):
            x_BTD = whole_input(self.norm(x_BTD), self.whole_tokens)
            return constrain(self.logits(x_BTD), ("batch", "tokens", "vocab"))
