"""The train step of any workload, jitted over a mesh of attached or described devices."""
