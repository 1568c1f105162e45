"""Runs the train step on attached devices: data, loop, checkpoints, metrics."""
