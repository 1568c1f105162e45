"""One process of a job: its rank, environment variables, run folder and event log."""
