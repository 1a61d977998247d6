"""Where it runs: Ray actors and their coordinator."""
