"""A network cut into stages that different devices compute, and what travels between them."""
