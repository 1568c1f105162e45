"""Fault tolerance around training processes: supervisors, a leader, restarts, fewer hosts."""
