"""Faults: what watches for them, what brings a run back, and how they are injected."""
