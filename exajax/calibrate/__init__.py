"""Measures this machine, and fits the figures that describe it."""
