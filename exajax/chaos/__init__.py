"""Breaks a running job as a schedule of faults says, from outside of its processes and within."""
