"""Checkpoints: saved asynchronously, verified, and restored onto any mesh."""
