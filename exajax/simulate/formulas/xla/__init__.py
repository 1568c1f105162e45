"""Our own program as XLA compiles it, in closed formulas."""
