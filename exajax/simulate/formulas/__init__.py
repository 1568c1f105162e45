"""The analytic engine: one training step in closed formulas, over whole arrays of layouts."""
