"""The compiled program: ahead-of-time compilation, and what the scheduled HLO says."""
