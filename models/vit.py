"""Vision transformer: GPT's blocks without a mask, over patches of an image (arXiv:2010.11929).

Classifies the mean over patches (the paper's appendix D.3; arXiv:2205.01580) instead of an extra
class token, so that a sequence has one token for each patch and a mesh divides it evenly.

Shapes: S height and width of an image, C channels, P numbers in a patch; others as in `layers`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from exajax.models.dimensions import ModelConfig
from exajax.models.gpt import GPTBlock
from exajax.models.layers import (
    REFERENCE,
    RESIDUAL,
    ComputeOptions,
    Decoder,
    LayerStack,
    layer_norm,
    linear,
)
from exajax.spmd.sharding import constrain


def patches(images_BSSC: jax.Array, patch: int) -> jax.Array:
    """Images as patches [B, T, P], row by row, with P = patch x patch x C."""
    B, S, _, C = images_BSSC.shape
    side = S // patch
    grid = images_BSSC.reshape(B, side, patch, side, patch, C)
    return jnp.swapaxes(grid, 2, 3).reshape(B, side * side, patch * patch * C)


class ViT(Decoder):
    """Vision transformer: images [B, S, S, C] to logits [B, V].

    Args:
        config: dimensions.
        how: how the model is computed.
        rngs: random streams; initial parameters are drawn from the default stream.
    """

    def __init__(self, config: ModelConfig, how: ComputeOptions = REFERENCE, *, rngs: nnx.Rngs):
        D, V = config.width, config.padded_vocab
        self.patch, self.remat = config.patch, how.remat
        # Initial values as small as the positions': larger ones drown these for many steps.
        self.embed = linear(config.patch_size, D, ("pixels", "embed"), bias=True, rngs=rngs)
        self.position = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (config.seq, D)),
            out_sharding=(None, "embed"),
        )
        self.stack = LayerStack(
            lambda r: GPTBlock(config, how, rngs=r), config.layers, parts=how.interleave, rngs=rngs
        )
        self.norm = layer_norm(D, rngs=rngs)
        self.logits = linear(D, V, ("embed", "vocab"), bias=True, rngs=rngs)

    def enter(self, images_BSSC: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        with jax.named_scope("embed"):
            # In the type of the parameters: pixels in fp32 would make the whole pass fp32.
            pixels_BTP = patches(images_BSSC.astype(self.embed.kernel[...].dtype), self.patch)
            return constrain(self.embed(pixels_BTP) + self.position[...], RESIDUAL)

    def head(self, x_BTD: jax.Array) -> jax.Array:
        with jax.named_scope("logits"):
            x_BD = constrain(jnp.mean(self.norm(x_BTD), axis=1), ("batch", "embed"))
            return constrain(self.logits(x_BD), ("batch", "vocab"))
