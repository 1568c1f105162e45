"""One process of a job: its place, its environment, its folder and its events."""
