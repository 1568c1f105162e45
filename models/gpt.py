"""GPT-2 and GPT-3: learned positions, LayerNorm, GELU, biases, tied logits (OpenAI 2019)."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from exajax.models.attention import attention, zigzag, zigzag_order
from exajax.models.dimensions import ModelConfig
from exajax.models.layers import (
    PLAIN,
    QKV,
    RESIDUAL,
    Decoder,
    Documents,
    Embedding,
    How,
    Stack,
    Streamed,
    kept_as,
    layer_norm,
    weight,
)
from exajax.models.whole_tokens import gathered, summed
from exajax.spmd.sharding import constrain


class Attention(nnx.Module):
    """Self-attention with biases."""

    def __init__(self, config: ModelConfig, how: How, *, rngs: nnx.Rngs):
        D, N, H = config.width, config.heads, config.head_dim
        self.flash, self.causal = how.flash, config.causal
        self.again, self.whole = how.remat == "attention", how.whole_tokens
        names = ("embed", "heads", "head")
        matrix = functools.partial(weight, bias=True, in_fp8=how.fp8, rngs=rngs)
        self.query = matrix(D, (N, H), names)
        self.key = matrix(D, (N, H), names)
        self.value = matrix(D, (N, H), names)
        scale = 0.02 / (2 * config.layers) ** 0.5
        self.out = matrix((N, H), D, ("heads", "head", "embed"), scale=scale)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> jax.Array:
        heads = ("batch", "tokens", "heads", None)
        x_BTD = gathered(x_BTD, self.whole)
        q_BTNH, k_BTNH, v_BTNH = (
            kept_as(name, constrain(project(x_BTD), heads))
            for name, project in zip(QKV, (self.query, self.key, self.value), strict=True)
        )
        mixed_BTNH = attention(
            q_BTNH,
            k_BTNH,
            v_BTNH,
            flash=self.flash,
            again=self.again,
            causal=self.causal,
            segments_BT=None if documents is None else documents.number_BT,
        )
        return kept_as("mixed", summed(self.out(constrain(mixed_BTNH, heads)), self.whole))


class Block(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, how: How, *, rngs: nnx.Rngs):
        D, F = config.width, config.ffn
        self.whole = how.whole_tokens
        self.attention_norm = layer_norm(D, rngs=rngs)
        self.attention = Attention(config, how, rngs=rngs)
        self.mlp_norm = layer_norm(D, rngs=rngs)
        matrix = functools.partial(weight, bias=True, in_fp8=how.fp8, rngs=rngs)
        self.up = matrix(D, F, ("embed", "mlp"))
        scale = 0.02 / (2 * config.layers) ** 0.5
        self.down = matrix(F, D, ("mlp", "embed"), scale=scale)

    def __call__(self, x_BTD: jax.Array, documents: Documents | None) -> Streamed:
        with jax.named_scope("attention_block"):
            mixed_BTD = self.attention(self.attention_norm(x_BTD), documents)
            x_BTD = constrain(x_BTD + mixed_BTD, RESIDUAL)
        with jax.named_scope("mlp"):
            up_BTF = kept_as("up", self.up(gathered(self.mlp_norm(x_BTD), self.whole)))
            h_BTF = nnx.gelu(up_BTF, approximate=True)
            fed_BTD = self.down(constrain(h_BTF, ("batch", "tokens", "mlp")))
            return x_BTD + kept_as("down", summed(fed_BTD, self.whole)), jnp.zeros(())


class GPT(Decoder):
    """A GPT of the given dimensions.

    Args:
        config: dimensions.
        how: how it is computed.
        rngs: random streams; parameters are drawn from its default stream.
    """

    def __init__(self, config: ModelConfig, how: How = PLAIN, *, rngs: nnx.Rngs):
        D, V = config.width, config.padded_vocab
        self.remat, self.whole = how.remat, how.whole_tokens
        self.embed = Embedding(V, D, rngs=rngs)
        self.position = nnx.Param(
            nnx.initializers.normal(0.01)(rngs.params(), (config.seq, D)),
            out_sharding=(None, "embed"),
        )
        self.stack = Stack(
            lambda r: Block(config, how, rngs=r), config.layers, parts=how.interleave, rngs=rngs
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
            x_BTD = gathered(self.norm(x_BTD), self.whole)
            logits_BTV = jnp.einsum("BTD,VD->BTV", x_BTD, self.embed.table[...])
            return constrain(logits_BTV, ("batch", "tokens", "vocab"))
