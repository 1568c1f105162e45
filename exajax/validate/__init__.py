"""Predictions against other people's published measurements."""
