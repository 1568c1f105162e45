"""Checkpoints: saved while training goes on, verified, and restored onto any mesh."""
