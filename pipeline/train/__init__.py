"""Training: the network it starts from, its objective, and the loop around it."""
