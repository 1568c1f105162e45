"""Watches a run: bad steps, silent data corruption, slow hosts."""
