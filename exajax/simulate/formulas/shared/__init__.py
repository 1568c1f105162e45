"""What the formulas of every program have in common: layouts, kernels, collectives, blocks."""
