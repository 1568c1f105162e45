"""GPT-2 and GPT-3: learned positions, LayerNorm, GELU, biases, tied logits (OpenAI 2019)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from exajax.models.attention import attention, zigzag, zigzag_order
from exajax.models.dimensions import ModelConfig
from exajax.models.layers import (
    QKV,
    REFERENCE,
    RESIDUAL,
    ComputeOptions,
    Decoder,
    Documents,
    Embedding,
    LayerStack,
    StreamAndLoss,
    layer_norm,
    linear,
    name_for_remat,
)
from exajax.models.whole_tokens import whole_input, whole_output
from exajax.spmd.sharding import constrain


class GPTAttention(nnx.Module):
    """Self-attention with biases."""

    def __init__(self, config: ModelConfig, how: ComputeOptions, *, rngs: nnx.Rngs):
        D, N, H = config.width, config.heads, config.head_dim
        self.flash, self.causal = how.flash, config.causal
        self.recompute_scores, self.whole_tokens = how.remat == "attention", how.whole_tokens
        names = ("embed", "heads", "head")
        dense = functools.partial(linear, bias=True, in_fp8=how.fp8, rngs=rngs)
        self.query = dense(D, (N, H), names)
        self.key = dense(D, (N, H), names)
        self.value = dense(D, (N, H), names)
        scale = 0.02 / (2 * config.layers) ** 0.5
        self.out = dense((N, H), D, ("heads", "head", "embed"), scale=scale)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> jax.Array:
        heads = ("batch", "tokens", "heads", None)
        x_BTD = whole_input(x_BTD, self.whole_tokens)
        q_BTNH, k_BTNH, v_BTNH = (
            name_for_remat(name, constrain(project(x_BTD), heads))
            for name, project in zip(QKV, (self.query, self.key, self.value), strict=True)
        )
        mixed_BTNH = attention(
            q_BTNH,
            k_BTNH,
            v_BTNH,
            flash=self.flash,
            recompute_scores=self.recompute_scores,
            causal=self.causal,
            segments_BT=None if documents is None else documents.segment_BT,
        )
        return name_for_remat(
            "mixed", whole_output(self.out(constrain(mixed_BTNH, heads)), self.whole_tokens)
        )


class GPTBlock(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, how: ComputeOptions, *, rngs: nnx.Rngs):
        D, F = config.width, config.ffn
        self.whole_tokens = how.whole_tokens
        self.attention_norm = layer_norm(D, rngs=rngs)
        self.attention = GPTAttention(config, how, rngs=rngs)
        self.mlp_norm = layer_norm(D, rngs=rngs)
        dense = functools.partial(linear, bias=True, in_fp8=how.fp8, rngs=rngs)
        self.up = dense(D, F, ("embed", "mlp"))
        scale = 0.02 / (2 * config.layers) ** 0.5
        self.down = dense(F, D, ("mlp", "embed"), scale=scale)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> StreamAndLoss:
        with jax.named_scope("attention_block"):
            mixed_BTD = self.attention(self.attention_norm(x_BTD), documents)
            x_BTD = constrain(x_BTD + mixed_BTD, RESIDUAL)
        with jax.named_scope("mlp"):
            up_BTF = name_for_remat(
                "up", self.up(whole_input(self.mlp_norm(x_BTD), self.whole_tokens))
            )
            h_BTF = nnx.gelu(up_BTF, approximate=True)
            fed_BTD = self.down(constrain(h_BTF, ("batch", "tokens", "mlp")))
            return x_BTD + name_for_remat(
                "down", whole_output(fed_BTD, self.whole_tokens)
            ), jnp.zeros(())


class GPT(Decoder):
    """GPT-2 or GPT-3: tokens [B, T] to logits [B, T, V].

    Args:
        config: dimensions.
        how: how the model is computed.
        rngs: random streams; initial parameters are drawn from the default stream.
    """

    def __init__(self, config: ModelConfig, how: ComputeOptions = REFERENCE, *, rngs: nnx.Rngs):
        D, V = config.width, config.padded_vocab
        self.remat, self.whole_tokens = how.remat, how.whole_tokens
        self.embed = Embedding(V, D, rngs=rngs)
        self.position = nnx.Param(
            nnx.initializers.normal(0.01)(rngs.params(), (config.seq, D)),
            out_sharding=(None, "embed"),
        )
        self.stack = LayerStack(
            lambda r: GPTBlock(config, how, rngs=r), config.layers, parts=how.interleave, rngs=rngs
        )
        self.norm = layer_norm(D, rngs=rngs)

    def enter(self, tokens_BT: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        with jax.named_scope("embed"):
            if segments_BT is None:
                position_TD = self.position[...][zigzag_order(tokens_BT.shape[1])]
                return constrain(self.embed(zigzag(tokens_BT)) + position_TD, RESIDUAL)
            positions_BT = Documents.of(segments_BT).position_BT
            position_BTD = jnp.take(self.position[...], positions_BT, axis=0)
            return constrain(self.embed(zigzag(tokens_BT)) + position_BTD, RESIDUAL)

    def head(self, x_BTD: jax.Array) -> jax.Array:
        with jax.named_scope("logits"):
            x_BTD = whole_input(self.norm(x_BTD), self.whole_tokens)
            logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, self.embed.table[...])
            return constrain(logits_BTV, ("batch", "tokens", "vocab"))
