"""Entry points for launchers and the monitoring that goes with a run."""
