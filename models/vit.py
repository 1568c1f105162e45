"""Vision transformer: patches of an image, the blocks of gpt without a mask (arXiv:2010.11929).

The mean over the patches is classified (the paper's appendix D.3; arXiv:2205.01580), not an extra
class token: so a sequence has as many tokens as there are patches, which a mesh divides.

Shapes: S height and width of an image, C channels, P numbers in a patch; others as in `layers`.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from exajax.models.dimensions import ModelConfig
from exajax.models.gpt import Block
from exajax.models.layers import PLAIN, RESIDUAL, Decoder, How, Stack, layer_norm, weight
from exajax.spmd.sharding import constrain


def patches(images_BSSC: jax.Array, patch: int) -> jax.Array:
    """Cuts images into squares, row by row: [B, T, P] with P = patch x patch x C."""
    B, S, _, C = images_BSSC.shape
    side = S // patch
    cut = images_BSSC.reshape(B, side, patch, side, patch, C)
    return jnp.swapaxes(cut, 2, 3).reshape(B, side * side, patch * patch * C)


class ViT(Decoder):
    """A vision transformer of the given dimensions.

    Args:
        config: dimensions.
        how: how it is computed.
        rngs: random streams; parameters are drawn from its default stream.
    """

    def __init__(self, config: ModelConfig, how: How = PLAIN, *, rngs: nnx.Rngs):
        D, V = config.width, config.padded_vocab
        self.patch, self.remat = config.patch, how.remat
        # As small as the positions, or they are not heard over the pixels for many steps.
        self.embed = weight(config.patch_size, D, ("pixels", "embed"), bias=True, rngs=rngs)
        self.position = nnx.Param(
            nnx.initializers.normal(0.02)(rngs.params(), (config.seq, D)),
            out_sharding=(None, "embed"),
        )
        self.stack = Stack(
            lambda r: Block(config, how, rngs=r), config.layers, parts=how.interleave, rngs=rngs
        )
        self.norm = layer_norm(D, rngs=rngs)
        self.logits = weight(D, V, ("embed", "vocab"), bias=True, rngs=rngs)

    def enter(self, images_BSSC: jax.Array, segments_BT: jax.Array | None = None) -> jax.Array:
        with jax.named_scope("embed"):
            # In the type of the parameters: pixels in fp32 would make the whole pass fp32.
            pixels_BTP = patches(images_BSSC.astype(self.embed.kernel[...].dtype), self.patch)
            return constrain(self.embed(pixels_BTP) + self.position[...], RESIDUAL)

    def head(self, x_BTD: jax.Array) -> jax.Array:
        with jax.named_scope("logits"):
            x_BD = constrain(jnp.mean(self.norm(x_BTD), axis=1), ("batch", "embed"))
            return constrain(self.logits(x_BD), ("batch", "vocab"))
