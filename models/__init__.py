"""Networks, one paper or family a file, and loading of published weights."""
