"""Time of one collective, by the network and the algorithm that it runs on."""
