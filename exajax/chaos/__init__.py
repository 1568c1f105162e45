"""Fault injection: schedules of faults, their injection into running jobs, and the outcome."""
