"""Prices a compiled program on a described cluster and lays it out in time."""
