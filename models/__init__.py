"""Model families in Flax NNX, and their presets."""
