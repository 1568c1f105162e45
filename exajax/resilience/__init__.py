"""Wraps training from outside: watches it, restarts it, goes on with fewer hosts, breaks it."""
