"""exajax's own training step, as XLA compiles it, in closed formulas."""
