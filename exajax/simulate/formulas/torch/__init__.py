"""Training steps of PyTorch in closed formulas: Megatron-LM, and those that took it over."""
