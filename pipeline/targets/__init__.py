"""Training targets of label maps: computed, written, read and drawn."""
