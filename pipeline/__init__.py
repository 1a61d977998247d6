"""What is computed, in which order, in one process."""
